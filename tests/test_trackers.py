"""Trackers: what each of them recorded is read back, and what one does that fails."""

import json
import struct
import sys
import time

import pytest
from tiny import tiny_config

from grpo_jax.errors import UsageError
from grpo_jax.runs import run as runs
from grpo_jax.runs.trackers import TRACKERS, find_tracker, make_trackers
from grpo_jax.runs.trackers.base import Tracker, Trackers
from grpo_jax.training.profiling import peak_flops
from grpo_jax.training.starting import reopen

CONFIG = {"seed": 7, "rollout": {"stop": ("a", "b")}, "mesh": {"data": 1}}
SAMPLES = [
    {"prompt": "1+2=", "completion": "3", "rewards": {"accuracy": 1.0}, "advantage": 0.5},
    {"prompt": "2+2=", "completion": "[5]", "rewards": {"accuracy": None}, "advantage": -0.5},
]
COLUMNS = ["prompt", "completion", "accuracy", "advantage"]
ROWS = [["1+2=", "3", 1.0, 0.5], ["2+2=", "[5]", None, -0.5]]


def record(folder, *names):
    """Three steps of a run, which is then gone on with after the second."""
    for first, restored in ((1, None), (3, 2)):
        run = runs.open_run(folder, tiny_config())
        with make_trackers(names) as trackers:
            trackers.begin(run, CONFIG, restored, 4)
            for step in range(first, first + 2):
                trackers.log(step, {"reward": step / 4, "kl": float("nan"), "time/step": 0.1})
            trackers.evaluation(step, {"accuracy": 0.5, "accuracy/low": 0.25})
            trackers.completions(step, SAMPLES)
        run.close()


def wandb_records(path):
    """The records of a .wandb file: LevelDB's log, blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, found = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(Record.FromString(whole))
            whole = b""
    return found


def finished_records(path):
    """The records of a session that has ended; W&B's own process may write them a moment later."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = wandb_records(path)
        if any(one.WhichOneof("record_type") == "exit" for one in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{path} has no end")


def test_wandb_offline_holds_the_run_and_goes_on_with_its_id(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    record(tmp_path / "mine", "wandb")
    kept = json.loads((tmp_path / "mine/tracker_ids.json").read_text())["wandb"]
    sessions = sorted((tmp_path / "mine/wandb").glob(f"offline-run-*/run-{kept}.wandb"))
    assert len(sessions) == 2  # both of one id, which `wandb sync` makes one run of
    history, runs_seen, steps = {}, [], []
    for path in sessions:
        for one in finished_records(path):
            if one.WhichOneof("record_type") == "run":
                runs_seen.append(one.run)
            if one.WhichOneof("record_type") == "history":
                items = {i.key or "/".join(i.nested_key): i.value_json for i in one.history.item}
                step = json.loads(items["step"])
                steps += [step] if "reward" in items else []
                history.setdefault(step, {}).update(items)
    assert {(r.run_id, r.display_name, r.project) for r in runs_seen} == {
        (kept, "mine", "grpo_jax")
    }
    config = {item.key: json.loads(item.value_json) for item in runs_seen[0].config.update}
    assert {k: config[k] for k in CONFIG} == {**CONFIG, "rollout": {"stop": ["a", "b"]}}
    assert steps == [1, 2, 3, 4]
    assert [float(history[n]["reward"]) for n in steps] == [0.25, 0.5, 0.75, 1.0]
    assert history[4]["eval/accuracy"] == "0.5" and "completions" in "".join(history[2])
    for path in sessions:
        [file] = (path.parent / "files/media/table").glob("completions_*.table.json")
        drawn = json.loads(file.read_text())
        assert (drawn["columns"], drawn["data"]) == (COLUMNS, ROWS)
    shown = capsys.readouterr()
    assert shown.out == f"wandb: {tmp_path / 'mine/wandb'}\n" * 2 and shown.err == ""


def test_trackio_holds_the_run_and_goes_on_with_its_id(tmp_path, monkeypatch, capsys):
    trackio = pytest.importorskip("trackio", reason="the extra `trackio` is not installed")
    from trackio import sqlite_storage

    for module in (trackio.utils, sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "store")
    record(tmp_path / "mine", "trackio")
    kept = json.loads((tmp_path / "mine/tracker_ids.json").read_text())["trackio"]
    [found] = trackio.Api().runs("grpo_jax")
    assert found.name == f"mine-{kept}"
    storage = sqlite_storage.SQLiteStorage
    config = storage.get_run_config("grpo_jax", found.name)
    assert {k: config[k] for k in CONFIG} == {**CONFIG, "rollout": {"stop": ["a", "b"]}}
    lines = storage.get_logs("grpo_jax", found.name)
    assert {r["step"]: r["reward"] for r in lines if "reward" in r} == {
        **{1: 0.25, 2: 0.5},
        **{3: 0.75, 4: 1.0},
    }
    assert [(r["step"], r["eval/accuracy"]) for r in lines if "eval/accuracy" in r] == [
        (2, 0.5),
        (4, 0.5),
    ]
    drawn = [(r["step"], r["completions"]["_value"]) for r in lines if "completions" in r]
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
    assert drawn == [(2, rows), (4, rows)]
    shown = capsys.readouterr()
    assert shown.out == "trackio: trackio show --project grpo_jax\n" * 2 and shown.err == ""


class Recorder(Tracker):
    """Keeps what it hears; fails in one method, if asked to."""

    def __init__(self, fails=None, required=False):
        self.heard, self.fails, self.required = [], fails, required

    def begin(self, run, hyperparameters, restored, total):
        self._hear("begin")

    def log(self, step, metrics):
        self._hear("log", step)

    def evaluation(self, step, metrics):
        self._hear("evaluation", step)

    def finish(self):
        self._hear("finish")

    def _hear(self, *what):
        self.heard.append(what)
        if what[0] == self.fails:
            raise OSError(f"no\nnetwork for {what[0]}")


def two_steps(**trackers):
    with Trackers(trackers) as all_of_them:
        all_of_them.begin(None, {}, None, 2)
        for step in (1, 2):
            all_of_them.log(step, {})
            all_of_them.completions(step, [])  # which a Recorder leaves out
    return [tracker.heard for tracker in trackers.values()]


def test_a_tracker_that_fails_is_reported_once_and_the_run_goes_on(capsys):
    whole = [("begin",), ("log", 1), ("log", 2), ("finish",)]
    assert two_steps(bad=Recorder("log"), good=Recorder()) == [whole, whole]
    message = capsys.readouterr().err
    assert message == (
        "warning: tracker 'bad' failed (log), and the run goes on: OSError: no network for log\n"
    )
    assert two_steps(bad=Recorder("begin"), good=Recorder()) == [whole[:1], whole]
    assert two_steps(bad=Recorder("finish"), good=Recorder()) == [whole, whole]
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.parametrize("fails", ["begin", "log", "finish"])
def test_a_required_tracker_ends_the_run_and_all_are_finished(fails):
    good, bad = Recorder(), Recorder(fails, required=True)
    with pytest.raises(OSError, match="no\nnetwork"):
        two_steps(good=good, bad=bad)
    assert good.heard[-1] == ("finish",)


def test_what_cannot_be_written_ends_the_run(tmp_path):
    """As on a full disk: the run's own files, which it goes on from, are not lost in silence."""
    run = runs.open_run(tmp_path / "run", tiny_config())
    with make_trackers(["jsonl"]) as trackers:
        trackers.begin(run, {}, None, 2)
        run.metrics.mkdir()
        with pytest.raises(UsageError, match=r"cannot write in .*run: Is a directory"):
            trackers.log(1, {"reward": 1.0})
    run.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wandbb", "unknown tracker 'wandbb'; did you mean 'wandb'? valid: console, "),
        ("no_such_module:T", "'no_such_module:T': cannot import 'no_such_module': No module"),
        ("test_trackers:Recoder", "unknown class 'Recoder'; did you mean 'Recorder'?"),
        ("", "('console',) lacks 'jsonl', whose files a run goes on from; valid: ('jsonl', 'cons"),
        ("json:JSONDecoder", "'json:JSONDecoder' is no tracker: it lacks begin, log, evaluation"),
    ],
)
def test_a_tracker_that_there_is_not_is_refused_before_anything_is_made(tmp_path, name, message):
    config = tiny_config(**{"log.trackers": ("jsonl", name) if name else ("console",)})
    with pytest.raises(UsageError) as raised:
        reopen(config, tmp_path / "run")
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert str(raised.value).startswith("config.log.trackers: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_is_not_installed_names_its_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, TRACKERS[name].split(":")[0], raising=False)
    with pytest.raises(UsageError, match=rf"{name}' is not installed: pip install 'grpo_jax\["):
        find_tracker(name)


def test_a_tracker_of_ones_own_is_imported(tmp_path):
    assert find_tracker("test_trackers:Recorder") is Recorder


def test_the_published_rate_is_that_of_the_device():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("TPU v5 lite") == 197e12 and peak_flops("TPU v5p") == 459e12
    assert peak_flops("cpu") is None
