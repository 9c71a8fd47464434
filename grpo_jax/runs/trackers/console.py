"""How far a run is, for people: a line a step, and on a terminal a bar and completions."""

import contextlib
import math
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from grpo_jax.console.progress import Screen, screen
from grpo_jax.files import JsonMapping
from grpo_jax.runs.run import Run
from grpo_jax.runs.trackers.base import Metrics, Tracker, scalars, table

TABLE_EVERY_S = 60.0  # a terminal shows no more tables of completions than people can read


class ConsoleTracker(Tracker):
    """Shows the progress: lines where output is a file, a live bar where it is a terminal."""

    required = True  # a program whose output nobody can read any more ends, as any does

    def __init__(self, console: Console | None = None):
        """Write to `console`; to standard output by default."""
        self._screen = Screen(console) if console else screen()
        self._showing = contextlib.ExitStack()
        self._shown, self._line = -math.inf, ""

    def begin(
        self, run: Run, hyperparameters: JsonMapping, restored: int | None, total: int
    ) -> None:
        """Show the bar."""
        self._total, self._first = total, restored or 0
        self._began, self._compiled = time.monotonic(), 0.0  # seconds, which later steps save
        bar = (TextColumn("{task.description}"), BarColumn())
        self._bar = Progress(*bar, console=self._screen.console)
        self._task = self._bar.add_task("", total=total, completed=self._first)
        self._showing.enter_context(self._screen.showing(self._bar))

    def log(self, step: int, metrics: Metrics) -> None:
        """One line."""
        self._compiled += metrics.get("time/compile", 0.0)
        passed = max(time.monotonic() - self._began - self._compiled, 0.0)
        left = passed / max(step - self._first, 1) * (self._total - step)
        self._line = progress_line(step, self._total, metrics, left)
        if self._screen.live:
            self._bar.update(self._task, completed=step, description=self._line)
        else:
            self._screen.say(self._line)

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """One line."""
        self._screen.say(evaluation_line(step, metrics))

    def completions(self, step: int, samples: Sequence[Metrics]) -> None:
        """A table now and then, on a terminal."""
        now = time.monotonic()
        if samples and self._screen.live and now - self._shown >= TABLE_EVERY_S:
            self._shown = now
            print_completions(samples, self._screen.console)

    def finish(self) -> None:
        """Leave the bar's last words."""
        self._showing.close()
        if self._screen.live and self._line:
            self._screen.say(self._line)


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


def evaluation_line(step: int, metrics: Metrics) -> str:
    """Return e.g. 'eval at step 20: accuracy 0.71 [0.65, 0.77], n 512'."""
    found = {k: f"{v:.3g}" for k, v in scalars(metrics).items() if not k.startswith("time/")}
    parts = []
    for name, value in found.items():
        whole, _, end = name.rpartition("/")
        if end in ("low", "high") and whole in found:
            continue
        low, high = found.get(f"{name}/low"), found.get(f"{name}/high")
        parts.append(f"{name} {value}" + (f" [{low}, {high}]" if low and high else ""))
    return f"eval at step {step}: {', '.join(parts)}"


def print_completions(samples: Sequence[Metrics], console: Console | None = None) -> None:
    """Print a table of samples.

    samples  each {"prompt": str, "completion": str, "rewards": {name: float or None},
             "advantage": float}
    """
    columns, rows = table(samples)
    drawn = Table(show_lines=True)
    drawn.add_column("prompt", ratio=1, overflow="fold")
    drawn.add_column("completion", ratio=2, overflow="fold")
    for name in columns[2:]:
        drawn.add_column(name, justify="right", no_wrap=True)
    for prompt, completion, *numbers in rows:
        shown = ["-" if x is None else f"{float(x):.2f}" for x in numbers]
        # Text: a completion may hold square brackets, which rich would read as its markup.
        drawn.add_row(Text(str(prompt)), Text(str(completion)), *shown)
    (console or Console()).print(drawn)
