"""A run's curves: curves.png, drawn from its records."""

import io
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grpo_jax.console.progress import doing
from grpo_jax.files import Json
from grpo_jax.runs.run import read_steps, write_atomically
from grpo_jax.statistics import wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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


def panels(folder: Path) -> dict[str, Callable[["Axes"], None]]:
    """What there is to draw of a run, by its title: functions that draw on Matplotlib's axes."""
    metrics, evals = read_steps(folder / "metrics.jsonl"), read_steps(folder / "eval.jsonl")
    names = {name for record in metrics for name in record}
    draws: dict[str, Callable[[Axes], None]] = {}
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


def picture(found: Sequence[Callable[["Axes"], None]], columns: int) -> bytes:
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


def _draw_panel(title: str, draw: Callable[["Axes"], None], axes: Any) -> None:
    draw(axes)
    axes.set_title(title)
    _tidy(axes)


def _series(records: list[Json], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of a metric; null, which NaN was written as, is a gap."""
    pairs = [(r["step"], r[name]) for r in records if name in r]
    values = [math.nan if value is None else value for _, value in pairs]
    return np.array([step for step, _ in pairs]), np.array(values, float)


def _draw_reward(metrics: list[Json], axes: Any) -> None:
    steps, mean = _series(metrics, "reward")
    if len(std := _series(metrics, "reward_std")[1]) == len(mean):
        axes.fill_between(steps, mean - std, mean + std, color=_BLUE, alpha=0.18, linewidth=0)
    axes.plot(steps, mean, color=_BLUE, **_marks(steps))


def _marks(steps: np.ndarray) -> Json:
    return {"marker": "o", "markersize": 3} if len(steps) < _FEW else {}


def _draw_accuracy(evals: list[Json], axes: Any) -> None:
    steps, accuracy = _series(evals, "accuracy")
    n = _series(evals, "n")[1]
    if len(n) == len(accuracy):
        low, high = wilson_interval(accuracy * n, n)
        axes.fill_between(steps, low, high, color=_BLUE, alpha=0.18, linewidth=0)
    axes.plot(steps, accuracy, color=_BLUE, marker="o", markersize=3)
    axes.set_ylim(-0.02, 1.02)


def _draw_lines(lines: Sequence[tuple[str, str]], metrics: list[Json], axes: Any) -> None:
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
