"""The last lines of a run, from records written by hand."""

import json

import pytest

from grpo_jax.runs.summary import duration, ending, summary


@pytest.fixture
def write(tmp_path):
    def write(**files):
        for name, records in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
        return tmp_path

    return write


def lines(text):
    return dict(line.split(maxsplit=1) for line in text.splitlines())


def test_a_run_ends_with_its_result_its_time_and_its_files(write):
    step = {"time/step": 50.0, "time/rollout": 20.0, "time/update": 30.0, "time/compile": 4.0}
    before = {"accuracy": 0.25, "accuracy/low": 0.2, "accuracy/high": 0.3, "n": 512}
    after = {"accuracy": 0.75, "accuracy/low": 0.7, "accuracy/high": 0.8, "n": 512}
    folder = write(
        metrics=[{"step": n, "reward": 0.5, **step} for n in (1, 2)],
        eval=[{"step": s, **e, "time/evaluation": 1.5} for s, e in ((0, before), (2, after))],
        cold_start__metrics=[{"step": 1, "loss": 2.0, "time/step": 9.0, "time/compile": 2.0}],
    )
    (folder / "curves.png").touch()
    found = lines(summary(folder, seconds=61.0, prompt="347+589="))
    assert found["result"] == (
        "held-out accuracy 0.250 [0.200, 0.300] -> 0.750 [0.700, 0.800] on 512 problems, "
        "at step 0 and 2 (95% intervals)"
    )
    assert found["time"] == (
        "1 min 1 s since this start; all sessions: cold start 9.0 s, sampling and judging 40 s, "
        "updates 1 min 0 s, evaluations 3.0 s (compiling 10 s of these)"
    )
    assert found["curves"] == f"{folder}/curves.png" and found["eval"] == f"{folder}/eval.jsonl"
    assert f"-m experiments.sample --model={folder} --prompt=347+589=" in found["sample"]
    assert lines(summary(folder))["time"].startswith("all sessions: cold start 9.0 s, sampling")
    chat = [{"role": "user", "content": "What's 1 + 2?"}]
    assert summary(folder, prompt=chat).endswith("--chat '--prompt=What'\"'\"'s 1 + 2?'")


def test_what_was_not_recorded_is_not_told(write):
    rewards = [0.0, 0.1, None, 0.2, 0.5]  # one step's was not finite
    folder = write(metrics=[{"step": n, "reward": r} for n, r in enumerate(rewards, 1)])
    assert lines(summary(folder, 2.0)) == {
        "result": "reward 0.050 -> 0.350 (means of the first and last 2 steps)",
        "time": "2.0 s since this start",
    }
    folder = write(metrics=[], eval=[{"step": 0, "accuracy": None}])
    assert summary(folder) == f"  eval    {folder}/eval.jsonl"


def test_the_end_of_supervised_learning():
    record = {"step": 80, "loss": 0.0834, "accuracy": 0.5234}
    assert ending(record) == "step 80: loss 0.083, accuracy 0.523 on training problems"
    assert ending(record | {"accuracy": None}) == "step 80: loss 0.083"


@pytest.mark.parametrize(
    ("seconds", "message"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.4, "59 s"), (205.2, "3 min 25 s"), (7503, "2 h 5 min")],
)
def test_durations(seconds, message):
    assert duration(seconds) == message
