"""Comparisons: which runs are made, what is read out of them, and what learners cost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from scipy import stats
from tiny import compile_fast, tiny_config  # noqa: F401

from experiments import compare
from grpo_jax.console.programs import run_program
from grpo_jax.errors import UsageError
from grpo_jax.training import comparison, variants
from grpo_jax.training.costs import learner_cost

VARIANTS = """
from grpo_jax.config import defaults

VARIANTS = ("grpo", "ppo")


def get_config(variant="grpo"):
    config = defaults()
    config.algorithm.preset, config.algorithm.beta = variant, 0.0
    config.model.update(layers=1, hidden=16, heads=2, kv_heads=1, ff=16)
    return config
"""
ACCURACY = {("grpo", 0): [0.1, 0.7, 0.95], ("grpo", 1): [0.2, 0.5, 0.85]}
ACCURACY |= {("ppo", 0): [0.1, 0.4, 0.6], ("ppo", 1): [0.2, 0.3, 0.9]}


@pytest.fixture
def file(tmp_path):
    flags.FLAGS.mark_as_parsed()
    path = tmp_path / "pair.py"
    path.write_text(VARIANTS)
    with flagsaver.flagsaver(config=str(path), workdir=str(tmp_path / "runs"), seeds=2):
        yield path


def write_run(folder, accuracy):
    """Four steps of 2 s, the first of which compiled for 6 s more; evaluated after 0, 2 and 4."""
    folder.mkdir(parents=True)
    steps = [{"step": i, "time/step": 2.0, "time/compile": 0.0} for i in range(1, 5)]
    steps[0] = {"step": 1, "time/step": 8.0, "time/compile": 6.0}
    evals = [{"step": s, "accuracy": a} for s, a in zip((0, 2, 4), accuracy, strict=True)]
    for name, records in (("metrics", steps), ("eval", evals)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_every_variant_runs_with_every_seed_and_is_told_of(file, tmp_path, monkeypatch, capsys):
    commands = []

    def train(module, config, seed, workdir):
        commands.append((module, config, seed))
        name, seed = config.split(":")[1], int(seed.split("=")[1])
        assert workdir == f"--workdir={tmp_path}/runs/{name}/seed{seed}"
        write_run(variants.run_folder(tmp_path / "runs", name, seed), ACCURACY[name, seed])

    monkeypatch.setattr(variants, "run_program", train)
    assert compare.main() == 0
    config = f"--config={file}"
    assert commands == [
        ("experiments.train", f"{config}:{name}", f"--config.seed={seed}")
        for seed in (0, 1)
        for name in ("grpo", "ppo")
    ]
    found = json.loads((tmp_path / "runs/comparison.json").read_text())
    ppo = found["learning"]["ppo"]
    np.testing.assert_allclose(ppo["lead"], [0.35, -0.05])
    assert found["learning"]["grpo"]["seconds_to_target"] == [8.0, None]
    assert found["learning"]["ppo"]["steps_to_target"] == [None, 4]
    assert ppo["step_seconds"] == [2.0, 2.0]
    lead = stats.ttest_1samp([0.35, -0.05], 0).confidence_interval()
    assert f"0.150 [{lead.low:.3f}, {lead.high:.3f}]" in capsys.readouterr().out
    table = (tmp_path / "runs/comparison.md").read_text()
    assert "| s to 90% |" in table and "8 (1 of 2 seeds)" in table
    assert (tmp_path / "runs/comparison.png").read_bytes().startswith(b"\x89PNG")


def test_variants_start_from_one_run_of_their_seed(file, tmp_path, monkeypatch, capsys):
    file.write_text(VARIANTS + "\n\nSTART = 'sft'\n")
    commands = []

    def train(module, config, seed, *rest):
        name, seed = config.split(":")[1], int(seed.split("=")[1])
        commands.append((name, seed, rest[:-1]))
        write_run(
            variants.run_folder(tmp_path / "runs", name, seed),
            ACCURACY.get((name, seed), [0.1] * 3),
        )

    def evaluate(folder, samples):
        assert samples == 4
        seed = int(folder.name.removeprefix("seed"))
        found = {"sft": 0.1, "ppo": 0.2, "grpo": 0.3 + 0.2 * seed}[folder.parent.name]
        return {"accuracy": 0.5, "pass@1": found, "pass@1/low": 0.0, "n": 3}

    monkeypatch.setattr(variants, "run_program", train)
    monkeypatch.setattr(comparison, "sampled", evaluate)
    with flagsaver.flagsaver(variants=["ppo", "grpo"], pass_at=4):
        assert compare.main() == 0
    half = 12.706205 * 0.1  # Student's t, 1 degree of freedom
    gain = f"0.100 [0.100, 0.100] | 0.400 [{0.4 - half:.3f}, {0.4 + half:.3f}] | "
    assert f"{gain}0.300 [{0.3 - half:.3f}, {0.3 + half:.3f}] |" in capsys.readouterr().out
    start = f"--config.start={tmp_path}/runs/sft/seed"
    assert commands == [
        found
        for s in (0, 1)
        for found in (("sft", s, ()), ("ppo", s, (f"{start}{s}",)), ("grpo", s, (f"{start}{s}",)))
    ]
    found = json.loads((tmp_path / "runs/comparison.json").read_text())
    assert list(found["learning"]) == ["ppo", "grpo"]
    assert found["curves"]["ppo"][1]["accuracy"] == ACCURACY["ppo", 1]
    assert found["sampled"]["grpo"][1]["pass@1"] == 0.5


def test_a_stage_runs_to_its_end_and_one_that_fails_is_named(tmp_path, monkeypatch, capfd):
    (tmp_path / "stage.py").write_text("import sys; print('here'); sys.exit(int(sys.argv[1]))")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run_program("stage", "0", "--more")
    assert capfd.readouterr().out == "--- stage 0 --more\nhere\n"
    with pytest.raises(UsageError, match=r"^stage 3: ended with status 3$"):
        run_program("stage", "3")
    for said in (2, 130):  # why, by the stage itself
        with pytest.raises(SystemExit) as left:
            run_program("stage", str(said))
        assert left.value.code == said


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl(2)")
def test_a_stage_dies_with_the_process_that_runs_it(tmp_path):
    (tmp_path / "stage.py").write_text("import time; print('up', flush=True); time.sleep(60)")
    code = "from grpo_jax.console.programs import run_program; run_program('stage')"
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[1])])
    command = [sys.executable, "-c", code]
    parent = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    )
    assert [parent.stdout.readline() for _ in range(2)] == ["--- stage\n", "up\n"]
    parent.kill()
    # The pipe ends when no process has it open any more: the stage is gone.
    assert parent.communicate(timeout=20)[0] == ""


def test_a_task_without_right_answers_and_seeds_of_other_steps_are_told_of(
    file, tmp_path, monkeypatch
):
    def train(module, config, seed, workdir):
        folder = Path(workdir.removeprefix("--workdir="))
        write_run(folder, [None] * 3 if "grpo" in config else [0.1, 0.2, 0.3])
        if config.endswith("ppo") and seed.endswith("1"):  # was evaluated more rarely, of one step
            lines = (folder / "eval.jsonl").read_text().splitlines(keepends=True)
            (folder / "eval.jsonl").write_text("".join(lines[::2]))

    monkeypatch.setattr(variants, "run_program", train)
    assert compare.main() == 0
    table = (tmp_path / "runs/comparison.md").read_text()
    assert "| grpo |  |  |  | 2.00 [2.00, 2.00] | never |" in table
    assert "| ppo | 0.100 [0.100, 0.100] | 0.300 [0.300, 0.300] |  | 2.00" in table
    assert "NaN" not in (tmp_path / "runs/comparison.json").read_text()
    runs = [comparison.curve(tmp_path / f"runs/ppo/seed{s}") for s in (0, 1)]
    assert [list(axis) for axis in comparison.mean_curve(runs, "step")] == [[0, 4], [0.1, 0.3]]


def test_what_cannot_be_compared_or_is_not_ours_is_refused_before_the_first_run(
    file, tmp_path, monkeypatch
):
    monkeypatch.setattr(variants, "run_program", None)
    (tmp_path / "runs").mkdir()
    for name in compare.WRITTEN:
        (tmp_path / "runs" / name).write_text("mine")
        with pytest.raises(UsageError, match=rf"--workdir=.*/runs holds {name}, and none of"):
            compare.main()
        (tmp_path / "runs" / name).unlink()
    file.write_text(VARIANTS.replace("    return", "    config.eval.every = 0\n    return"))
    with pytest.raises(UsageError, match=r"config\.eval\.every=0 of variant 'grpo'"):
        compare.main()


def test_an_unknown_variant_is_refused(file):
    assert variants.chosen(["ppo@1e-3"], ("grpo", "ppo")) == ("ppo@1e-3",)
    message = "--variants=pp@1e-3: no such variant; the closest is 'ppo'"
    with (
        flagsaver.flagsaver(variants=["grpo", "pp@1e-3"]),
        pytest.raises(UsageError, match=message),
    ):
        compare.main()


def test_a_file_without_variants_is_refused(file):
    file.write_text(VARIANTS.replace('VARIANTS = ("grpo", "ppo")', 'VARIANTS = ("grpo",)'))
    with pytest.raises(UsageError, match="VARIANTS must name two variants or more"):
        compare.main()


def test_a_critic_costs_a_second_network():
    plain = {"algorithm.preset": "grpo", "algorithm.beta": 0.0}
    critic = {"algorithm.preset": "ppo", "algorithm.beta": 0.0, "algorithm.minibatches": 1}
    steps = {"algorithm.preset": "grpo_process", "algorithm.beta": 0.0}
    grpo, ppo, process = (learner_cost(tiny_config(**c)) for c in (plain, critic, steps))
    head = learner_cost(tiny_config(**critic, **{"algorithm.critic": "head"}))
    width, vocabulary = 16, plain_vocabulary()
    # The critic has no head over the vocabulary, but one value a hidden unit.
    assert ppo["parameters"] == 2 * grpo["parameters"] - 4 * width * (vocabulary - 1)
    assert head["parameters"] == grpo["parameters"] + 4 * width
    assert ppo["optimizer"] > 1.5 * grpo["optimizer"] and ppo["peak"] > grpo["peak"]
    # A critic is forwarded once before the update, and once with its gradient in it: 4 to 3.
    assert 1.5 < ppo["flop"] / grpo["flop"] < 7 / 3
    assert grpo["flop"] < head["flop"] < ppo["flop"]
    # Rewards of steps cost only sums.
    assert process["parameters"] == grpo["parameters"]
    assert 1 < process["flop"] / grpo["flop"] < 1.01


def plain_vocabulary():
    from grpo_jax.models.decoder import Decoder
    from grpo_jax.training.experiment import build

    model = build(tiny_config()).model
    tokens = jax.numpy.zeros((1, 1, 2), jax.numpy.int32)
    init = lambda key: model.init(key, tokens, method=Decoder.initialise)  # noqa: E731
    return jax.eval_shape(init, jax.random.key(0))["params"]["head"].value.shape[0]
