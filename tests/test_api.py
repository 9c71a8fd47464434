"""What `import grpo_jax` offers a notebook."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import compile_fast, sevens, tiny_config  # noqa: F401

import grpo_jax
from grpo_jax.rewards.text import exact_answer
from grpo_jax.runs.checkpoints import restore_params, steps
from grpo_jax.runs.trackers.base import Tracker

CHANGES = {"steps": 4, "eval.every": 2, "eval.problems": 8, "checkpoint.every": 0}


def lines(run):
    """The metrics of a run without those of time."""
    return [
        {k: v for k, v in line.items() if not k.startswith("time/")} | {"time/reward": 0}
        for line in run.metrics
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not broken off, with a function as its reward."""
    return grpo_jax.train(
        tiny_config(**CHANGES), tmp_path_factory.mktemp("runs") / "whole", rewards=[sevens]
    )


def test_a_run_is_trained_read_and_asked(whole):
    config, folder = whole.config, whole.folder
    assert config.rewards.to_dict() == {"sevens": 1.0}
    assert [line["step"] for line in whole.metrics] == [1, 2, 3, 4]
    assert [line["step"] for line in whole.evaluations] == [0, 2, 4]
    reread = grpo_jax.load_run(str(folder))
    assert reread.metrics == whole.metrics and reread.config == config
    assert whole.metrics == [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    greedy = grpo_jax.sample(whole.model, ["3+4=", "12+9="], n=2)
    assert [len(texts) for texts in greedy.texts] == [2, 2] and greedy.finished.shape == (2, 2)
    assert greedy.texts[0][0] == greedy.texts[0][1]
    drawn = [
        grpo_jax.sample(grpo_jax.load_model(folder), ["3+4="], temperature=1.0, seed=seed, n=2)
        for seed in (1, 1, 2)
    ]
    assert drawn[0].texts == drawn[1].texts != drawn[2].texts
    assert drawn[0].texts[0][0] != drawn[0].texts[0][1]
    last, found = whole.evaluations[-1], grpo_jax.evaluate(whole)
    assert {k: last[k] for k in found} == pytest.approx(found)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_steps_are_broken_off_and_gone_on_with(whole, tmp_path, at):
    def take(stop):
        for step in grpo_jax.steps(tiny_config(**CHANGES), tmp_path / "run", rewards=[sevens]):
            numbers.append(step.number)
            assert (step.evaluation is None) == (step.number % 2 == 1)
            assert set(step.metrics) | {"step"} == set(whole.metrics[0])
            if step.number == stop:
                break

    numbers = []
    take(at)
    assert steps(tmp_path / "run" / "checkpoints") == [at]
    take(None)
    assert numbers == [1, 2, 3, 4]
    assert lines(grpo_jax.load_run(tmp_path / "run")) == lines(whole)
    theirs, ours = (
        restore_params(folder / "checkpoints")[0] for folder in (whole.folder, tmp_path / "run")
    )
    jax.tree.map(np.testing.assert_array_equal, theirs, ours)
    take(None)  # nothing is left
    assert numbers == [1, 2, 3, 4]


def test_the_policy_is_asked_while_it_learns(whole, tmp_path):
    with_model = grpo_jax.steps(tiny_config(**CHANGES), tmp_path / "run", rewards=[sevens])
    texts = [grpo_jax.sample(step.model, ["3+4="]).texts for step in with_model]
    assert texts[-1] == grpo_jax.sample(whole.model, ["3+4="]).texts


class Heard(Tracker):
    def __init__(self):
        self.steps, self.begun = [], []

    def begin(self, run, hyperparameters, restored, total):
        self.begun.append((restored, total))

    def log(self, step, metrics):
        self.steps.append((step, metrics["reward"]))


def test_tasks_trackers_and_callbacks_are_objects(tmp_path, capsys):
    problems = [grpo_jax.Problem(f"{i}+{i}=", {"answer": str(2 * i)}) for i in range(10)]
    task = grpo_jax.Task(
        "doubling", problems[:8], problems[8:], exact_answer, symbols=tuple("0123456789+=")
    )
    heard, seen = Heard(), []

    def late(step):
        seen.append(step.number)
        if step.number == 2 and len(seen) == 2:
            raise RuntimeError("no such\nthing")

    def short(prompts, completions, **columns):
        return [-float(len(c)) for c in completions]

    config = tiny_config(**CHANGES | {"rewards": {"short": 0.5}})
    given = {"task": task, "trackers": [heard], "rewards": {"short": short, "none": sevens}}
    with pytest.raises(
        grpo_jax.UsageError,
        match=r"callback 'late', step 2: RuntimeError: no such thing; .*is saved in",
    ) as raised:
        grpo_jax.train(config, tmp_path / "run", callbacks=[late], **given)
    assert "\n" not in str(raised.value)
    run = grpo_jax.train(config, tmp_path / "run", callbacks=[late], **given)
    assert seen == [1, 2, 3, 4]
    assert heard.begun == [(None, 4), (2, 4)]
    assert heard.steps == [(line["step"], line["reward"]) for line in run.metrics]
    assert run.config.rewards.to_dict() == {"short": 0.5, "none": 1.0}
    assert {s["prompt"] for s in map(json.loads, (run.folder / "completions.jsonl").open())} <= {
        p.prompt for p in problems[:8]
    }
    assert grpo_jax.evaluate(run, task=task)["n"] == 2
    other = grpo_jax.Task(
        "doubling", problems[:7], problems[8:], exact_answer, symbols=task.symbols
    )
    with pytest.raises(grpo_jax.UsageError, match="another config"):
        grpo_jax.train(config, run.folder, **given | {"task": other})
    with pytest.raises(grpo_jax.UsageError, match="'doubling' was given as an object"):
        grpo_jax.evaluate(run)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rewards": [lambda prompts, completions: [0.0]]}, 'valid: {"name": function}'),
        ({"rewards": [sevens, sevens]}, "two are called 'sevens'"),
        ({"rewards": {"accuracy": sevens}}, "'accuracy' stands for another"),
        ({"rewards": {"m:f": sevens}}, "'m:f' stands for another"),
        ({"rewards": "sevens"}, "a list of functions and names"),
        ({"rewards": ["sevems"]}, "unknown reward 'sevems'"),
        ({"rewards": {"a": 1.0}}, "'a' is 1.0; valid: a function"),
        ({"rewards": []}, "at least one reward"),
        ({"trackers": [object()]}, "'object' is no tracker: it lacks begin"),
        ({"task": "addition"}, "task: 'addition'; valid: a grpo_jax.Task"),
        ({"task": grpo_jax.Task("t", [], [], sevens)}, "task.train is empty"),
        ({"task": grpo_jax.Task("t", iter(()), [], sevens)}, "task.train: .*; valid: a list of"),
        ({"callbacks": ["print"]}, "callbacks: 'print'; valid: functions"),
        ({"trackers": [Heard]}, r"Heard is a class; valid: an object of it, Heard\(\)"),
    ],
)
def test_bad_objects_are_named(tmp_path, given, words):
    with pytest.raises(ValueError, match=words) as raised:
        grpo_jax.train(tiny_config(**CHANGES), tmp_path / "run", **given)
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()


def test_a_run_has_one_writer_and_a_config(tmp_path):
    taken = grpo_jax.steps(tiny_config(**CHANGES), tmp_path / "run", rewards=[sevens])
    first = next(taken)
    assert "params" not in repr(first) and len(repr(first.model)) < 200
    with pytest.raises(grpo_jax.UsageError, match="is in use by this process"):
        grpo_jax.train(tiny_config(**CHANGES), tmp_path / "run", rewards=[sevens])
    code = "import pathlib, sys, grpo_jax.runs.run as r; r._lock(pathlib.Path(sys.argv[1]))"
    other = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "run"], capture_output=True, text=True, check=False
    )
    assert f"in use by another process (pid {os.getpid()})" in other.stderr
    taken.close()
    after = grpo_jax.steps(tiny_config(**CHANGES), tmp_path / "run", rewards=[sevens])
    assert next(after).number == 2
    after.close()
    with pytest.raises(grpo_jax.UsageError, match=r"as grpo_jax\.load_config gives"):
        grpo_jax.train("configs/quick.py", tmp_path / "other")
    with pytest.raises(grpo_jax.UsageError, match="problems=0; valid: at least 1"):
        grpo_jax.evaluate(tmp_path / "run", problems=0)


def test_a_config_is_loaded_with_changes(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from grpo_jax.config import defaults\n"
        "def get_config(text=''):\n    c = defaults()\n    c.steps = len(text)\n    return c\n"
    )
    changes = {"rollout.group": 4, "rewards": {"a:b": 0.5}, "task.digits": 1}
    config = grpo_jax.load_config(f"{file}:four", changes)
    assert (config.steps, config.rollout.group, config.task.digits) == (4, 4, 1)
    assert config.rewards.to_dict() == {"a:b": 0.5}
    assert grpo_jax.load_config().steps == 60
    for changes, words in (
        ({"rollout.groups": 4}, "unknown field config.rollout.groups; .*config.rollout.group$"),
        ({"steps.x": 4}, "unknown field config.steps.x"),
        ({"steps": "4"}, "config.steps: '4' is not of type int"),
        ({"rollout": 4}, "config.rollout: 4 is not of type ConfigDict"),
    ):
        with pytest.raises(grpo_jax.UsageError, match=words):
            grpo_jax.load_config(file, changes)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prompts": "3+4="}, "a list of one or more"),
        ({"prompts": []}, "a list of one or more"),
        ({"prompts": [{"role": "user", "content": "3+4="}]}, "a list of them"),
        ({"n": 0}, "n=0; valid: at least 1"),
        ({"seed": -1}, "seed=-1; valid: 0 to 4294967295"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"stop": [""]}, "stop: ''"),
    ],
)
def test_bad_questions_are_named(whole, given, words):
    with pytest.raises(grpo_jax.UsageError, match=words):
        grpo_jax.sample(whole.model, **{"prompts": ["3+4="]} | given)


def test_names_are_there_and_imported_when_they_are_used():
    assert sorted(grpo_jax._HOMES) == grpo_jax.__all__ and set(grpo_jax.__all__) <= {*dir(grpo_jax)}
    for name in grpo_jax.__all__:
        assert getattr(grpo_jax, name).__doc__
    with pytest.raises(AttributeError, match="'grpo_jax' has no attribute 'trian'"):
        grpo_jax.trian  # noqa: B018
    code = "import sys, grpo_jax; grpo_jax.Problem; print({'jax', 'flax', 'absl'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
