import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from documented import KNOWN
from PIL import Image
from rich.console import Console

from grpo_jax.config import defaults, resolve
from grpo_jax.runs import curves
from grpo_jax.runs import run as runs
from grpo_jax.runs.trackers import console, make_trackers
from grpo_jax.runs.trackers.base import Trackers
from grpo_jax.runs.trackers.events import Event, SessionLog

ROOT = Path(__file__).resolve().parents[1]

SAMPLE = {
    "prompt": "1+2=",
    "completion": "[bold]3[/nothing]",
    "rewards": {"accuracy": 1.0, "format": None},
    "advantage": -0.5,
}


@pytest.fixture
def reopen(tmp_path):
    opened = []

    def reopen():
        if opened:
            opened[-1].close()
        opened.append(runs.open_run(tmp_path / "run", resolve(defaults())))
        return opened[-1]

    yield reopen
    opened[-1].close()


def events(folder):
    """Return the events of all files, oldest file first; a record is length, crc, data, crc."""
    found = []
    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def scalars(found):
    """Return {(tag, step): value} as TensorBoard shows it: a restart purges the later steps."""
    shown = {}
    for event in found:
        if event.session_log.status == SessionLog.START:
            shown = {k: v for k, v in shown.items() if k[1] < event.step}
        for value in event.summary.value:
            assert (value.tag, event.step) not in shown
            shown[value.tag, event.step] = value.simple_value
    return shown


def log_steps(run, first, last, restored=None):
    with make_trackers(defaults().log.trackers) as log:
        log.begin(run, {}, restored, 4)
        for step in range(first, last + 1):
            log.log(step, {"reward": jnp.float32(step / 4), "kl": float("nan"), "time/step": 0.1})
            log.completions(step, [SAMPLE, SAMPLE])
            log.evaluation(step, {"accuracy": 0.5, "n": 8})


def test_a_resumed_run_tells_every_step_once(reopen):
    run = reopen()
    log_steps(run, 1, 3)
    whole = run.metrics.read_bytes().splitlines()
    log_steps(reopen(), 3, 4, restored=2)
    lines = run.metrics.read_bytes().splitlines()
    assert lines[:3] == whole and [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert json.loads(lines[0]) == {"step": 1, "kl": None, "reward": 0.25, "time/step": 0.1}
    assert [r["step"] for r in runs.read_lines(run.eval)] == [1, 2, 3, 4]
    assert [r["step"] for r in runs.read_lines(run.completions)] == [1, 1, 2, 2, 3, 3, 4, 4]
    shown = scalars(events(run.tensorboard))
    assert [shown["reward", step] for step in range(1, 5)] == [0.25, 0.5, 0.75, 1.0]
    assert ("eval/accuracy", 4) in shown and not any(tag == "kl" for tag, _ in shown)


def test_a_run_without_a_checkpoint_starts_over(reopen):
    log_steps(reopen(), 0, 2)
    run = reopen()
    log_steps(run, 0, 1)
    assert [r["step"] for r in runs.read_lines(run.metrics)] == [0, 1]
    assert {step for _, step in scalars(events(run.tensorboard))} == {0, 1}


def test_progress_is_plain_lines_when_piped(reopen, capsys):
    log_steps(reopen(), 1, 2)
    assert capsys.readouterr().out.splitlines() == [
        "step 1/4  reward 0.250  0:00 left",
        "eval at step 1: accuracy 0.5, n 8",
        "step 2/4  reward 0.500  0:00 left",
        "eval at step 2: accuracy 0.5, n 8",
    ]


@pytest.mark.parametrize(("every", "tables"), [(0.0, 2), (3600.0, 1)])
def test_a_terminal_shows_a_bar_and_completions_now_and_then(
    reopen, tmp_path, monkeypatch, every, tables
):
    monkeypatch.setattr(console, "TABLE_EVERY_S", every)
    with (tmp_path / "screen").open("w") as screen:
        terminal = Console(file=screen, force_terminal=True, width=90)
        with Trackers({"console": console.ConsoleTracker(terminal)}) as log:
            log.begin(reopen(), {}, None, 4)
            log.log(1, {"reward": 0.5})
            for step in (1, 2):
                log.completions(step, [SAMPLE])
    shown = (tmp_path / "screen").read_text()
    assert "step 1/4" in shown and "━" in shown and shown.count("advantage") == tables


def test_progress_line():
    values = {"reward": 0.5, "rewards/accuracy/mean": 1, "time/tokens_per_second": 12345.6}
    line = console.progress_line(7, 60, values, 3725.2)
    assert line == "step  7/60  reward 0.500  accuracy 1.000  12,346 tokens/s  1:02:05 left"


def test_an_evaluation_is_a_line_with_its_intervals():
    values = {"accuracy": 0.7123, "accuracy/low": 0.65, "accuracy/high": 0.7699, "n": 512}
    values |= {"pass@4": 0.9, "pass@4/low": 0.0, "pass@4/high": 1.0, "sums/accuracy": 0.5}
    line = console.evaluation_line(20, values | {"time/evaluation": 3.0, "kind": "text"})
    assert line == (
        "eval at step 20: accuracy 0.712 [0.65, 0.77], n 512, pass@4 0.9 [0, 1], sums/accuracy 0.5"
    )


def test_completions_are_shown_as_they_are(capsys):
    console.print_completions([SAMPLE], Console(width=100))
    shown = capsys.readouterr().out
    assert "[bold]3[/nothing]" in shown
    assert [cell.strip() for cell in shown.splitlines()[3].split("│")[3:6]] == [
        "1.00",
        "-",
        "-0.50",
    ]


def test_curves_hold_a_panel_for_each_series_there_is(tmp_path):
    assert curves.plot_curves(tmp_path) is None
    series = {"reward": 0.5, "reward_std": 0.1}
    for name, extra in (("few", {}), ("many", {"entropy": 1.0, "kl": None})):
        (tmp_path / name).mkdir()
        for step in range(3):
            runs.append_line(tmp_path / name / "metrics.jsonl", {"step": step, **series, **extra})
        runs.append_line(tmp_path / name / "eval.jsonl", {"step": 2, "accuracy": 0.5, "n": 8})
    sizes = {}
    for name in ("few", "many"):
        path = curves.plot_curves(tmp_path / name)
        with Image.open(path) as image:
            image.verify()
            sizes[name] = image.size
        assert sorted(p.name for p in path.parent.iterdir()) == [
            "curves.png",
            "eval.jsonl",
            "metrics.jsonl",
        ]
    assert sizes["few"] == (1440, 540) and sizes["many"] == (2160, 1080)


@pytest.mark.parametrize(
    ("record", "titles"),
    [
        ({"loss": 2.0, "entropy": 1.0}, ["Loss (nats a token)", "Entropy (nats a token)"]),
        (
            {"loss": 2.0, "accuracy": 0.5},
            ["Loss (nats a token)", "Accuracy on training problems"],
        ),
        (
            {"loss": 0.7, "accuracy": 0.5, "margin": 0.1},
            ["Loss (nats a pair)", "Accuracy on training pairs", "Margin (chosen - rejected)"],
        ),
        ({"loss": 2.0, "reward": 0.5, "accuracy": 0.5}, ["Reward (mean)"]),
    ],
)
def test_curves_are_those_of_what_was_learnt_from(tmp_path, record, titles):
    runs.append_line(tmp_path / "metrics.jsonl", {"step": 1, **record})
    assert list(curves.panels(tmp_path)) == titles
    assert Image.open(curves.plot_curves(tmp_path)).size == (720 * len(titles), 540)


def test_every_name_in_the_source_is_explained():
    """Those of models and algorithms that no run of the tests has, too."""
    folders = [
        ROOT / "grpo_jax" / name for name in ("algorithms", "learning", "engines", "training")
    ]
    text = "".join(path.read_text() for folder in folders for path in folder.glob("*.py"))
    names = set(re.findall(r'"((?:val|moe|mtp|kl|time|clip_ratio|speculative)/[\w/]+)"', text))
    assert {"moe/load_max", "val/mean", "time/flop_utilization"} <= names
    names -= {"time/seconds"}  # a column of the results of R1's pipeline
    assert not {name for name in names if not KNOWN.fullmatch(name)}
    assert not KNOWN.fullmatch("moe/load_mean") and KNOWN.fullmatch("rewards/a:b/mean")


def test_events_are_written_without_torch():
    """Which tensorboardX imports where it can, for seconds; a program that has it keeps it."""
    code = "import importlib.util, sys, grpo_jax.runs.trackers.events; "
    code += "importlib.util.find_spec('torch'); "
    code += "assert 'tensorboardX' in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_nothing_imports_what_takes_long_for_little():
    """scipy.stats for two p-values, and tensorboardX as it comes."""
    files = [path for path in (ROOT / "grpo_jax").rglob("*.py") if path.name != "events.py"]
    slow = re.compile(r"(from|import) (scipy import .*stats|scipy\.stats|tensorboardX)")
    assert not [path.name for path in files if slow.search(path.read_text())]
