"""What a run tells: JSON lines, TensorBoard, a progress line, a table of samples, curves."""

import contextlib
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from grpo_jax.console.progress import Screen, doing, screen
from grpo_jax.runs.events import Event, EventsWriter, SessionLog, Summary
from grpo_jax.runs.run import (
    Run,
    append_line,
    read_steps,
    truncate_after,
    write_atomically,
    writing_in,
)
from grpo_jax.statistics import wilson_interval

Metrics = Mapping[str, Any]

TABLE_EVERY_S = 10.0  # a terminal shows no more tables of completions than people can read


class Logger:
    """Writes a run's metrics to its folder and shows how far it is. Use it in a `with` block.

    It opens files and a live display, which is why it is a class. Records of later steps than
    that of the restored checkpoint are dropped: their steps are run again, and nothing is told
    twice. So evaluate a step before its checkpoint is saved, or a kill in between loses it.
    """

    def __init__(
        self, run: Run, total: int, restored: int | None = None, console: Console | None = None
    ):
        """Open the files of `run`.

        total     steps in all
        restored  step of the restored checkpoint; None = none was, every old record is dropped
        console   where progress goes; standard output by default
        """
        last = -1 if restored is None else restored
        for path in (run.metrics, run.completions, run.eval):
            truncate_after(path, last)
        first = max(last, 0)
        self._run, self._total, self._first = run, total, first
        self._began = time.monotonic()
        self._shown, self._line = -math.inf, ""
        self._compiled = 0.0  # seconds, which later steps will not take
        self._screen = Screen(console) if console else screen()
        self._events = _open_events(run, last)
        bar = (TextColumn("{task.description}"), BarColumn())
        self._bar = Progress(*bar, console=self._screen.console)
        self._task = self._bar.add_task("", total=total, completed=first)

    def __enter__(self) -> "Logger":
        self._showing = contextlib.ExitStack()
        self._showing.enter_context(self._screen.showing(self._bar))
        return self

    def __exit__(self, *_: object) -> None:
        self._showing.close()
        if self._screen.live and self._line:  # what stays of the bar
            self._screen.say(self._line)
        with writing_in(self._run.tensorboard):
            self._events.close()

    def step(self, step: int, metrics: Metrics) -> None:
        """Record one step's scalars in metrics.jsonl and TensorBoard, and show the progress."""
        append_line(self._run.metrics, {"step": step, **metrics})
        self._scalars(step, metrics)
        self._compiled += metrics.get("time/compile", 0.0)
        passed = max(time.monotonic() - self._began - self._compiled, 0.0)
        left = passed / max(step - self._first, 1) * (self._total - step)
        self._line = progress_line(step, self._total, metrics, left)
        if self._screen.live:
            self._bar.update(self._task, completed=step, description=self._line)
        else:
            self._screen.say(self._line)

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """Record one evaluation in eval.jsonl and, under "eval/", TensorBoard, and show it."""
        append_line(self._run.eval, {"step": step, **metrics})
        self._scalars(step, {f"eval/{name}": value for name, value in metrics.items()})
        scores = [f"{k} {float(v):.3g}" for k, v in metrics.items() if _is_scalar(v)]
        told = ", ".join(s for s in scores if not s.startswith("time/"))
        self._screen.say(f"eval at step {step}: {told}")

    def completions(self, step: int, samples: Sequence[Metrics]) -> None:
        """Record sampled completions in completions.jsonl; a terminal shows some as a table."""
        for sample in samples:
            append_line(self._run.completions, {"step": step, **sample})
        now = time.monotonic()
        if samples and self._screen.live and now - self._shown >= TABLE_EVERY_S:
            self._shown = now
            print_completions(samples, self._screen.console)

    def _scalars(self, step: int, metrics: Metrics) -> None:
        values = {name: float(value) for name, value in metrics.items() if _is_scalar(value)}
        summary = Summary(
            value=[
                Summary.Value(tag=name, simple_value=value)
                for name, value in values.items()
                if math.isfinite(value)
            ]
        )
        with writing_in(self._run.tensorboard):
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            self._events.flush()


def _open_events(run: Run, last: int) -> EventsWriter:
    """Start a file of TensorBoard events; later steps than `last` of earlier files are void.

    Written here and now, not by tensorboardX's SummaryWriter, whose thread loses what it has
    queued when the process is killed, and blocks the process for good once the disk is full.
    """
    with writing_in(run.tensorboard):
        run.tensorboard.mkdir(exist_ok=True)
        # Two starts within one second would otherwise share a name, the second over the first.
        events = EventsWriter(str(run.tensorboard / "events"), f".{time.time_ns()}")
        if run.resumed:
            restart = SessionLog(status=SessionLog.START)
            events.write_event(Event(wall_time=time.time(), step=last + 1, session_log=restart))
        events.flush()
    return events


def _is_scalar(value: Any) -> bool:
    return value is not None and not isinstance(value, str) and np.ndim(value) == 0


# Label, metric; what a step did not measure is left out.
_PROGRESS = (("reward", "reward"), ("accuracy", "rewards/accuracy/mean"))
_SUPERVISED = (("loss", "loss"), ("accuracy", "accuracy"))


def progress_line(step: int, total: int, metrics: Metrics, seconds_left: float) -> str:
    """Return e.g. 'step 12/60  reward 0.53  accuracy 0.41  1,234 tokens/s  1:05 left'."""
    parts = [f"step {step:>{len(str(total))}}/{total}"]
    for label, name in _PROGRESS if "reward" in metrics else _SUPERVISED:
        if metrics.get(name) is not None:
            parts.append(f"{label} {float(metrics[name]):.3f}")
    if metrics.get("time/tokens_per_second") is not None:
        parts.append(f"{float(metrics['time/tokens_per_second']):,.0f} tokens/s")
    minutes, seconds = divmod(round(seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    parts.append(
        f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"
    )
    return "  ".join(parts)


def print_completions(samples: Sequence[Metrics], console: Console | None = None) -> None:
    """Print a table of samples.

    samples  each {"prompt": str, "completion": str, "rewards": {name: float or None},
             "advantage": float}
    """
    names = list(dict.fromkeys(name for sample in samples for name in sample["rewards"]))
    table = Table(show_lines=True)
    table.add_column("prompt", ratio=1, overflow="fold")
    table.add_column("completion", ratio=2, overflow="fold")
    for name in [*names, "advantage"]:
        table.add_column(name, justify="right", no_wrap=True)
    for sample in samples:
        numbers = [sample["rewards"].get(name) for name in names] + [sample["advantage"]]
        shown = ["-" if x is None else f"{float(x):.2f}" for x in numbers]
        # Text: a completion may hold square brackets, which rich would read as its markup.
        table.add_row(Text(sample["prompt"]), Text(sample["completion"]), *shown)
    (console or Console()).print(table)


# Title, what is drawn: (label, metric); a panel without any of its metrics is left out.
_Panels = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
_PANELS: _Panels = (
    ("Completion length (tokens)", (("mean", "completions/mean_length"),)),
    ("Entropy (nats a token)", (("entropy", "entropy"),)),
    ("KL to the reference (nats a token)", (("kl", "kl"),)),
    ("Clipped share", (("low", "clip_ratio/low_mean"), ("high", "clip_ratio/high_mean"))),
)
_OF_SOLUTIONS: _Panels = (
    ("Loss (nats a token)", (("loss", "loss"),)),
    ("Accuracy on training problems", (("accuracy", "accuracy"),)),
)
_OF_PAIRS: _Panels = (
    ("Loss (nats a pair)", (("loss", "loss"),)),
    ("Accuracy on training pairs", (("accuracy", "accuracy"),)),
    ("Margin (chosen - rejected)", (("margin", "margin"),)),
)
_FEW = 25  # points, which are marked as such
_BLUE, _ORANGE = "#2166ac", "#d6604d"


def plot_curves(workdir: Path | str) -> Path | None:
    """Draw DIR/curves.png from DIR/metrics.jsonl and DIR/eval.jsonl; return its path.

    Reward (+- reward_std), or the loss and accuracy of supervised learning; held-out accuracy (95%
    Wilson interval), completion length, entropy, kl and clip ratios against steps. What was not
    logged is left out; None if nothing was.
    """
    folder = Path(workdir)
    found = list(panels(folder).values())
    if not found:
        return None
    with doing("drawing curves.png"):
        write_atomically(folder / "curves.png", picture(found, columns=3))
    return folder / "curves.png"


def panels(folder: Path) -> dict[str, Callable[[Any], None]]:
    """What there is to draw of a run, by its title: functions that draw on Matplotlib's axes."""
    metrics, evals = read_steps(folder / "metrics.jsonl"), read_steps(folder / "eval.jsonl")
    names = {name for record in metrics for name in record}
    draws: dict[str, Callable[[Any], None]] = {}
    lines = _PANELS
    if "reward" in names:
        std = "reward_std" in names
        draws["Reward (mean ± std)" if std else "Reward (mean)"] = partial(_draw_reward, metrics)
    else:
        lines = (_OF_PAIRS if "margin" in names else _OF_SOLUTIONS) + lines
    if any(record.get("accuracy") is not None for record in evals):
        draws["Held-out accuracy (95% interval)"] = partial(_draw_accuracy, evals)
    for title, series in lines:
        if known := [one for one in series if one[1] in names]:
            draws[title] = partial(_draw_lines, known, metrics)
    return {title: partial(_draw_panel, title, draw) for title, draw in draws.items()}


def picture(found: Sequence[Callable[[Any], None]], columns: int) -> bytes:
    """Panels side by side, in rows of `columns`, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows), dpi=200, layout="constrained")
    for index, draw in enumerate(found, 1):
        draw(figure.add_subplot(rows, columns, index))
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})
    return content.getvalue()


def _draw_panel(title: str, draw: Callable[[Any], None], axes: Any) -> None:
    draw(axes)
    axes.set_title(title)
    _tidy(axes)


def _series(records: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of a metric; null, which NaN was written as, is a gap."""
    pairs = [(r["step"], r[name]) for r in records if name in r]
    values = [math.nan if value is None else value for _, value in pairs]
    return np.array([step for step, _ in pairs]), np.array(values, float)


def _draw_reward(metrics: list[dict[str, Any]], axes: Any) -> None:
    steps, mean = _series(metrics, "reward")
    if len(std := _series(metrics, "reward_std")[1]) == len(mean):
        axes.fill_between(steps, mean - std, mean + std, color=_BLUE, alpha=0.18, linewidth=0)
    axes.plot(steps, mean, color=_BLUE, **_marks(steps))


def _marks(steps: np.ndarray) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3} if len(steps) < _FEW else {}


def _draw_accuracy(evals: list[dict[str, Any]], axes: Any) -> None:
    steps, accuracy = _series(evals, "accuracy")
    n = _series(evals, "n")[1]
    if len(n) == len(accuracy):
        low, high = wilson_interval(accuracy * n, n)
        axes.fill_between(steps, low, high, color=_BLUE, alpha=0.18, linewidth=0)
    axes.plot(steps, accuracy, color=_BLUE, marker="o", markersize=3)
    axes.set_ylim(-0.02, 1.02)


def _draw_lines(lines: Sequence[tuple[str, str]], metrics: list[dict[str, Any]], axes: Any) -> None:
    for (label, name), color in zip(lines, (_BLUE, _ORANGE), strict=False):
        steps, values = _series(metrics, name)
        axes.plot(steps, values, color=color, label=label, **_marks(steps))
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    if lines[0][1] == "accuracy":
        axes.set_ylim(-0.02, 1.02)
    elif len(lines) > 1:  # shares, which may all be 0
        axes.set_ylim(0, max(axes.get_ylim()[1], 0.01))


def _tidy(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    for line in axes.lines:
        line.set_linewidth(1.4)
    axes.title.set_size(9.5)
    axes.set_xlabel("step", fontsize=8.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axes.tick_params(labelsize=8, length=3)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
