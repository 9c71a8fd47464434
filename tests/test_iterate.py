"""Iterative GRPO: two iterations of one step in this process, and the stages of more."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from tiny import compile_fast  # noqa: F401

from experiments import iterate
from grpo_jax.config import resolve
from grpo_jax.config.command_line import define_flags, parse_flags
from grpo_jax.runs.checkpoints import restore_params
from grpo_jax.runs.run import load_config
from grpo_jax.sharding import using
from grpo_jax.training import iterations, reward_model
from grpo_jax.training import rl as trainer
from grpo_jax.training.loading import load
from grpo_jax.training.rejection import Rule, reject

CONFIG = """
from grpo_jax.config import defaults


def get_config(name="policy"):
    config = defaults()
    config.compilation_cache, config.reward_workers, config.steps, config.seed = "", 1, 1, 7
    config.prompt_length = 8
    config.model.update(layers=1, hidden=16, heads=2, kv_heads=1, ff=16)
    config.rollout.update(prompts=10, group=2, max_tokens=40, prompt_bucket=8, temperature=0.9)
    config.optimizer.learning_rate = 1e-2
    config.eval.update(problems=4, every=0)
    config.rewards = {"accuracy": 1.0}
    kind, _, run = name.partition(":")
    if kind == "reward_model":
        config.task = {"name": "pairs", "path": "", "replay": (), "heldout_fraction": 0.4}
        config.start, config.eval.every = run, 1
        return config
    config.task = {"name": "jsonl", "path": "PATH", "reward": "tiny:even"}
    config.algorithm.beta = 0.1
    if run:
        config.rewards[f"reward_model:{run}"] = 0.5
    return config
"""
TRAINED = {"experiments.train": trainer, "experiments.reward_model": reward_model}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    flags.FLAGS.mark_as_parsed()
    path = tmp_path_factory.mktemp("iterate")
    problems = "".join(json.dumps({"prompt": f"{i}="}) + "\n" for i in range(60))
    (path / "problems.jsonl").write_text(problems)
    (path / "config.py").write_text(CONFIG.replace("PATH", str(path / "problems.jsonl")))
    options = {
        "config": str(path / "config.py"),
        "workdir": str(path / "runs-v1.0"),
        "problems": 20,
    }
    with flagsaver.flagsaver(**options, iterations=2, samples=4):
        yield path / "runs-v1.0"  # whose name is part of a reward's


def in_this_process(module, *given):
    """`run_program` without the seconds that a process takes."""
    values = {name.lstrip("-"): value for name, _, value in (x.partition("=") for x in given)}
    if module == "experiments.rejection":  # whose flags have the names of others
        ex, params, _ = load(Path(values["workdir"]))
        numbers = {name: int(values[name]) for name in ("problems", "samples", "keep", "first")}
        rule = Rule(temperature=float(values["temperature"]), **numbers)
        with ex.rewarder(("accuracy",)) as rewarder, using(ex.mesh):
            reject(ex, params, rewarder, rule, Path(values["out"]), values["workdir"])
        return
    mine = flags.FlagValues()
    define_flags(argv=[module, *given], flag_values=mine)
    parse_flags([module, *given], mine)
    TRAINED[module].train(resolve(mine.config), Path(mine.workdir))


@pytest.fixture(scope="module")
def done(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iterations, "run_program", in_this_process)
        iterate.main()
        yield folder


def test_each_iteration_starts_where_the_one_before_ended(done):
    policies = [load_config(done / f"iteration{i}/policy") for i in range(3)]
    assert [(c.seed, c.steps) for c in policies] == [(7, 0), (8, 1), (9, 1)]
    for number in (1, 2):
        before, now = (done / f"iteration{i}" for i in (number - 1, number))
        config = policies[number]
        assert config.start == str(before / "policy")
        judge = f"reward_model:{now / 'reward_model'}"
        assert config.rewards.to_dict() == {"accuracy": 1.0, judge: 0.5}
        [record] = map(json.loads, (now / "policy/metrics.jsonl").open())
        assert record["kl"] == pytest.approx(0, abs=1e-6)  # its reference is where it starts
        assert np.isfinite(record[f"rewards/{judge}/mean"])
    starts = [load_config(done / f"iteration{i}/reward_model").start for i in (1, 2)]
    assert starts == [str(done / "iteration0/policy"), str(done / "iteration1/reward_model")]
    for kind in ("policy", "reward_model"):  # both have moved
        two = [restore_params(done / f"iteration{i}/{kind}/checkpoints")[0] for i in (1, 2)]
        assert all(x.any() for x in jax.tree.leaves(jax.tree.map(np.subtract, *two)))


def test_a_reward_model_learns_from_new_pairs_and_earlier_ones(done):
    prompts = []
    for number in (1, 2):
        pairs = done / f"iteration{number}/pairs"
        rule = json.loads((pairs / "rule.json").read_bytes())
        assert (rule["first"], rule["temperature"]) == (20 * (number - 1), 0.9)
        prompts.append({json.loads(line)["prompt"] for line in (pairs / "pairs.jsonl").open()})
    assert all(prompts) and not prompts[0] & prompts[1]
    task = load_config(done / "iteration2/reward_model").task
    assert task.path == str(done / "iteration2/pairs/pairs.jsonl")
    assert list(task.replay) == [str(done / "iteration1/pairs/pairs.jsonl")]


def test_the_same_command_again_changes_nothing_and_tells_the_same(done, capsys):
    files = {p: p.read_bytes() for p in done.rglob("*.jsonl")}
    iterate.main()
    out = capsys.readouterr().out
    assert out.count("is finished: all") == 5
    assert {p: p.read_bytes() for p in done.rglob("*.jsonl")} == files
    last = json.loads((done / "iteration2/reward_model/eval.jsonl").read_text().splitlines()[-1])
    interval = ", ".join(f"{last[f'accuracy/{end}']:.3f}" for end in ("low", "high"))
    assert f"| 2 | {last['accuracy']:.3f} [{interval}] |  |" in out.splitlines()


def test_an_accuracy_that_abstains_is_left_out(tmp_path):
    assert iterations.last_accuracy(tmp_path) == ""
    (tmp_path / "eval.jsonl").write_text('{"step": 0, "accuracy": null, "accuracy/low": null}\n')
    assert iterations.last_accuracy(tmp_path) == ""


def test_every_earlier_iteration_is_replayed(folder, monkeypatch):
    commands = []
    monkeypatch.setattr(iterations, "run_program", lambda *command: commands.append(command))
    config = f"{folder.parent / 'config.py'}:reward_model:{folder / 'iteration2/policy'}"
    iterations.train_reward_model(config, folder, 3, {"seed": 10})
    assert commands[0][:2] == ("experiments.reward_model", f"--config={config}")
    replay = tuple(str(folder / f"iteration{i}/pairs/pairs.jsonl") for i in (2, 1))
    assert f"--config.task.replay={replay}" in commands[0]
    assert f"--config.start={folder / 'iteration2/reward_model'}" in commands[0]
