"""The pipeline on a tiny model: every stage, what it starts from, and going on after a stop."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from tiny import compile_fast  # noqa: F401

from configs import r1_tiny
from experiments import r1
from grpo_jax.config import resolve
from grpo_jax.errors import UsageError
from grpo_jax.models.sizes import size
from grpo_jax.runs.run import append_line, load_config
from grpo_jax.tasks import make_task
from grpo_jax.training import r1_report
from grpo_jax.training.r1 import stages_to_run, start_of

pytest.importorskip("lingua", reason="the extra grpo_jax[language] is not installed")

SMALL = """
from configs import r1_tiny
from configs.r1_tiny import *


REJECTION = REJECTION | {"problems": 24, "samples": 3, "language": ""}
FIELDS = {
    **{"compilation_cache": "", "reward_workers": 1, "eval.problems": 12, "model.layers": 1},
    **{"model.hidden": 16, "model.heads": 2, "model.kv_heads": 1, "model.ff": 16},
    **{"rollout.prompts": 4, "rollout.group": 2, "sft.batch": 8},
}


def get_config(stage="base", folder=""):
    config = r1_tiny.get_config(stage, folder)
    config.update_from_flattened_dict(FIELDS)
    config.steps, config.sft.steps = min(config.steps, 1), min(config.sft.steps, 2)
    return config
"""
ROWS = ["base", "student", "cold_start", "reasoning_rl", "rejection_sft", "all_scenarios_rl"]
ROWS += ["distillation"]


def small(*args, parts=r1_tiny.parts, **messy):
    found = parts(*args, **messy)
    del found["programs"]  # the sandbox is not everywhere
    return {kind: options | {"heldout_size": 6} for kind, options in found.items()}


@pytest.fixture
def set_flags(tmp_path, monkeypatch):
    monkeypatch.setattr(r1_tiny, "parts", small)
    monkeypatch.setattr(r1_report, "picture", lambda found, columns: b"")  # test_metrics.py draws
    flags.FLAGS.mark_as_parsed()
    file = tmp_path / "small.py"
    file.write_text(SMALL)
    folder = str(tmp_path / "run-v1.0")
    with flagsaver.flagsaver(config=str(file), workdir=folder, without=[], seeds=None):
        yield tmp_path / "run-v1.0"


def rows(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").open()]


def test_every_stage_is_told_of_and_a_stopped_pipeline_goes_on(set_flags, monkeypatch, capsys):
    folder = set_flags

    def stop(*_):
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr("grpo_jax.training.r1.rejection", stop)
        with pytest.raises(InterruptedError):
            r1.main()
    before = rows(folder)
    assert [row["stage"] for row in before] == ROWS[:4]
    (folder / "export").mkdir()
    (folder / "export/config.json").write_text('{"architectures": []}')  # no run, and no stage
    r1.main()
    after = rows(folder)
    assert after[:4] == before and [row["stage"] for row in after] == ROWS
    for row in after:
        assert 0 <= row["accuracy/low"] <= row["accuracy"] <= row["accuracy/high"] <= 1
        assert 0 <= row["preference"] <= 1 and 0 <= row["format"] <= 1
        assert row["mean_length"] > 0 and row["n"] == 8 and "countdown/accuracy" in row
        both = [row[f"preference/{name}"] for name in r1_tiny.JUDGES]
        assert row["preference"] == pytest.approx(np.mean(both))
    for stage, start in r1_tiny.STARTS.items():
        if stage != "rejection":
            assert load_config(folder / stage).start == str(folder / start)
    kept = [json.loads(line) for line in (folder / "rejection/kept.jsonl").open()]
    assert kept and {"prompt", "solution", "kind"} <= kept[0].keys()
    dropped = [json.loads(line) for line in (folder / "rejection/dropped.jsonl").open()]
    assert len(kept) + len(dropped) == 24 * 3 and all(record["filter"] for record in dropped)
    page = (folder / "report.html").read_text()
    assert all(f"<h2>{stage}</h2>" in page for stage in r1_tiny.STAGES if stage != "rejection")
    assert not re.search(r'(src|href)="(?!data:)', page)
    check_page(page)
    assert "distillation" in capsys.readouterr().out
    r1.main()
    assert rows(folder) == after


def check_page(page):
    """Every stage has its curves, date, versions and config, and a narrow screen holds it."""
    parts = dict(part.split("</h2>", 1) for part in page.split("<h2>")[1:])
    assert parts.keys() == {*r1_tiny.STAGES} - {"rejection"}
    for stage, part in parts.items():
        of = "pair" if stage in r1_tiny.JUDGES else "token"
        title = "Reward (mean" if stage.endswith("_rl") else f"Loss (nats a {of})"
        assert f'alt="{title}' in part, stage
        assert re.search(r"Last written 20\d\d-\d\d-\d\d \d\d:\d\d", part), stage
        assert f"numpy {np.__version__}" in part and "revision " in part
        assert "<summary>config</summary>" in part and "model.hidden: 128 -&gt; 16" in part
    assert '<meta name="viewport" content="width=device-width' in page
    assert '<div class="scroll"><table>' in page


def test_every_seed_has_its_own_pipeline_and_a_part_of_the_table(set_flags, monkeypatch, capsys):
    ran = []

    def pipeline(file, names, folder, seed):
        ran.append((folder.name, seed))
        folder.mkdir(parents=True)
        accuracies = {"base": 0.2 + 0.1 * seed, "cold_start": 0.5 + 0.2 * seed}
        for stage, accuracy in accuracies.items():
            append_line(
                folder / "results.jsonl",
                {"stage": stage, "accuracy": accuracy, "preference": None, "mean_length": 4.6},
            )
        if seed:  # of these seeds nothing is known of one stage, and of another no accuracy
            append_line(folder / "results.jsonl", {"stage": "zero", "accuracy": None})
        else:
            for stage in ("zero", "reasoning_rl"):
                append_line(folder / "results.jsonl", {"stage": stage, "accuracy": 0.5})

    monkeypatch.setattr("grpo_jax.training.r1.pipeline", pipeline)
    with flagsaver.flagsaver(seeds=3):
        r1.main()
    assert ran == [("seed0", 0), ("seed1", 1), ("seed2", 2)]
    table = (set_flags / "results.md").read_text()
    assert table in capsys.readouterr().out
    cells = [line.strip("| ").split(" | ") for line in table.splitlines()]
    of = {row[0]: dict(zip(cells[0], row, strict=False)) for row in cells}
    half = 4.302653 * 0.1 / np.sqrt(3)  # Student's t, 2 degrees of freedom
    assert of["base"]["accuracy"] == f"0.300 [{0.3 - half:.3f}, {0.3 + half:.3f}]"
    assert of["cold_start"]["gain"] == f"0.400 [{0.4 - half:.3f}, {0.4 + half:.3f}]"
    for stage in ("zero", "reasoning_rl"):  # whose cells are empty
        assert of[stage] == {"stage": stage}
    assert of["base"]["gain"] == of["base"]["preference"] == "" and of["base"]["tokens"] == "5"


def test_pages_of_other_makers_are_left_as_they_are(set_flags):
    set_flags.mkdir()
    for name in r1.WRITTEN:
        (set_flags / name).write_text("mine")
        for seeds in (None, 2):
            with (
                flagsaver.flagsaver(seeds=seeds),
                pytest.raises(UsageError, match=f"holds {name}, and none of the runs"),
            ):
                r1.main()
        (set_flags / name).unlink()


def test_a_stage_that_is_left_out_hands_its_start_on():
    stages = stages_to_run("r1_tiny", r1_tiny, ["cold_start"])
    assert "cold_start" not in stages and len(stages) == len(r1_tiny.STAGES) - 1
    assert start_of("reasoning_rl", r1_tiny.STARTS, stages) == "base"
    assert start_of("reasoning_rl", r1_tiny.STARTS, list(r1_tiny.STAGES)) == "cold_start"
    assert start_of("base", r1_tiny.STARTS, stages) is None
    with pytest.raises(
        UsageError, match="--without=cold: no such stage; the closest is 'cold_start'"
    ):
        stages_to_run("r1_tiny", r1_tiny, ["cold"])


MODELS = [
    *[("r1_smollm2", "smollm2-135m"), ("r1_7b", "qwen2.5-7b")],
    *[("r1_distillation", ""), ("r1_zero", "")],
]


@pytest.mark.parametrize(("name", "model"), MODELS)
def test_every_stage_of_other_pipelines_has_a_config(name, model, monkeypatch):
    file = importlib.import_module(f"configs.{name}")
    monkeypatch.setattr("grpo_jax.config.read_config_file", lambda path: size(model))
    assert {*file.STARTS, *file.STARTS.values()} <= set(file.STAGES)
    for stage in file.STAGES:
        config = resolve(file.get_config(stage, "DIR"))
        start = file.STARTS.get(stage)
        assert config.start == (f"DIR/{start}" if start else "")
        documented = f"python -m experiments.r1 --config=configs/{Path(file.__file__).name} "
        assert documented in file.__doc__


def test_the_problems_of_seven_billion_parameters_are_read(tmp_path, monkeypatch):
    """From files as its docstring has them, those without a right answer too."""
    pytest.importorskip("math_verify", reason="the extra grpo_jax[math] is not installed")
    file = importlib.import_module("configs.r1_7b")
    monkeypatch.setattr(file, "DATA", str(tmp_path))
    monkeypatch.setattr("grpo_jax.config.read_config_file", lambda path: size("qwen2.5-7b"))
    case = {"stdout": "5"}
    of = {
        "cold_start": [{"prompt": f"q{i}", "solution": "s"} for i in range(40)],
        "general": [{"prompt": f"g{i}", "answer": None, "solution": "s"} for i in range(40)],
        "code": [{"prompt": f"c{i}", "cases": [case]} for i in range(40)],
        **{f"gsm8k/{s}": [{"question": s, "answer": "1+1\n#### 2"}] for s in ("train", "test")},
        **{f"math/{s}": [{"problem": s, "solution": "\\boxed{2}"}] for s in ("train", "test")},
    }
    for name, records in of.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        lines = "".join(f"{json.dumps(record)}\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    task = make_task(**resolve(file.get_config("cold_start", "DIR")).task)
    assert len(task.train) + len(task.heldout) == 40 and task.solve(task.train[0]) == "s"
    options = resolve(file.get_config("reasoning_rl", "DIR")).task.to_dict()
    options["parts"].pop("code")  # whose reward refuses to start without a sandbox
    task = make_task(**options)
    kinds = {p.columns["kind"] for p in task.heldout}
    assert kinds == {"gsm8k", "math", "general"}
    [general] = {
        tuple(task.accuracy([p.prompt], ["?"], kind=[k], answer=[None]))
        for p in task.heldout
        if (k := p.columns["kind"]) == "general"
    }
    assert general == (None,)
