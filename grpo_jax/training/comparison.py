"""The result of a comparison of variants: curves, and tables with intervals over seeds."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from grpo_jax.console.progress import doing, say
from grpo_jax.files import JsonMapping
from grpo_jax.runs.run import read_steps, write_atomically
from grpo_jax.sharding import using
from grpo_jax.statistics import seed_interval
from grpo_jax.training.evaluation import evaluate_policy
from grpo_jax.training.loading import load


def write_comparison(
    folder: Path,
    runs: Mapping[str, Sequence[Path]],
    costs: Mapping[str, Mapping[str, float]],
    target: float,
    samples: int,
) -> None:
    """Write comparison.md, comparison.png and comparison.json of runs, {variant: a folder a seed}.

    costs    of the variants that are compared; a run's without any is only sampled
    target   the accuracy whose time is reported
    samples  the largest k of pass@k and maj@k; 0 = none
    """
    curves = {name: [curve(each) for each in runs[name]] for name in costs}
    tables = [*learning_table(curves, target), "", *cost_table(costs)]
    drawn = {}
    if samples:
        drawn = {name: [sampled(each, samples) for each in own] for name, own in runs.items()}
        tables += ["", *sampled_table(drawn, samples)]
    text = "\n".join(tables)
    print(text)
    write_atomically(folder / "comparison.md", (text + "\n").encode())
    with doing("drawing comparison.png"):
        write_atomically(folder / "comparison.png", picture(curves))
    seeds = len(next(iter(curves.values())))
    kept = {"seeds": seeds, "costs": costs, "learning": summary(curves, target), "curves": curves}
    kept |= {"sampled": drawn} if drawn else {}
    write_atomically(folder / "comparison.json", json.dumps(without_nan(kept)).encode())
    say(f"{folder / 'comparison.md'} has the tables, comparison.png the curves")


def curve(folder: Path) -> dict[str, list[float]]:
    """Held-out accuracy after each evaluation of a run, with the updates' steps and seconds.

    Accuracy is NaN where the task's abstains on all problems. Seconds are those of steps,
    compilation left out; evaluations are not counted.
    """

    steps = read_steps(folder / "metrics.jsonl")
    spent = np.cumsum([0.0, *(r["time/step"] - r["time/compile"] for r in steps)])
    evals = read_steps(folder / "eval.jsonl")
    timed = [r["time/step"] for r in steps[1:] or steps]
    return {
        "step": [e["step"] for e in evals],
        "seconds": [round(float(spent[e["step"]]), 2) for e in evals],
        "accuracy": [math.nan if e["accuracy"] is None else e["accuracy"] for e in evals],
        "step_seconds": [float(np.median(timed)) if timed else math.nan],
    }


def summary(curves: JsonMapping, target: float) -> dict:
    """For each variant: values a seed, and the first variant's lead over it, seed by seed."""
    first = next(iter(curves))
    out = {}
    for name, runs in curves.items():
        last = [r["accuracy"][-1] for r in runs]
        reached = [first_at(r, "seconds", target) for r in runs]
        lead = [a["accuracy"][-1] - b for a, b in zip(curves[first], last, strict=True)]
        out[name] = {
            "before": [r["accuracy"][0] for r in runs],
            "after": last,
            "lead": lead,
            "step_seconds": [r["step_seconds"][0] for r in runs],
            "seconds_to_target": reached,
            "steps_to_target": [first_at(r, "step", target) for r in runs],
        }
    return out


def first_at(run: dict, axis: str, target: float) -> float | None:
    """Where on `axis` a run was first evaluated at `target` or above; None if never."""
    hits = [x for x, a in zip(run[axis], run["accuracy"], strict=True) if a >= target]
    return hits[0] if hits else None


def learning_table(curves: dict, target: float) -> list[str]:
    """A Markdown table of what was learnt; 95% t intervals over seeds."""
    first = next(iter(curves))
    rows = [
        f"| variant | accuracy before | after | {first}'s lead | s / step | s to {target:.0%} |",
        "|---|---|---|---|---|---|",
    ]
    for name, values in summary(curves, target).items():
        lead = "" if name == first else interval(values["lead"])
        reached = [s for s in values["seconds_to_target"] if s is not None]
        reached_at = f"{np.median(reached):.0f}" if reached else "never"
        if 0 < len(reached) < len(values["after"]):
            reached_at += f" ({len(reached)} of {len(values['after'])} seeds)"
        cells = [interval(values["before"]), interval(values["after"]), lead]
        cells += [interval(values["step_seconds"], 2), reached_at]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def interval(values: list[float], digits: int = 3) -> str:
    """Mean and 95% t interval over seeds; "" where one has none."""

    if np.isnan(values).any():
        return ""
    mean, low, high = seed_interval(values)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def cost_table(costs: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A Markdown table of the learner's costs."""
    units = {"parameters": 2**20, "optimizer": 2**20, "peak": 2**20, "flop": 1e9}
    heads = ["parameters, MiB", "optimizer, MiB", "peak, MiB", "GFLOP a step"]
    rows = [f"| learner | {' | '.join(heads)} |", "|---" * 5 + "|"]
    for name, values in costs.items():
        cells = [f"{values[key] / unit:.1f}" for key, unit in units.items()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def sampled(folder: Path, samples: int) -> dict[str, float]:
    """pass@k and maj@k of a run's newest checkpoint on its held-out problems."""
    ex, params, _ = load(folder)
    sampling = doing(f"sampling {folder}'s model")
    with ex.rewarder(("accuracy",)) as rewarder, using(ex.mesh), sampling:
        problems = ex.config.eval.problems
        return evaluate_policy(ex, params, rewarder, problems, samples).metrics


def sampled_table(found: dict[str, list[dict[str, float]]], samples: int) -> list[str]:
    """A Markdown table of pass@k and maj@k, k up to `samples`, and of each variant's gain over the
    first, by seed."""
    first, *others = found
    values = {
        measure: {name: [run[measure] for run in runs] for name, runs in found.items()}
        for measure in found[first][0]
        if measure == "accuracy" or ("@" in measure and "/" not in measure)
    }
    heads = [first, *(head for name in others for head in (name, f"{name}'s gain"))]
    rows = [
        f"| of {samples} samples | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for measure, of in values.items():
        cells = [interval(of[first])]
        for name in others:
            gain = [b - a for a, b in zip(of[first], of[name], strict=True)]
            cells += [interval(of[name]), interval(gain)]
        rows.append(f"| {'greedy' if measure == 'accuracy' else measure} | {' | '.join(cells)} |")
    return rows


def mean_curve(runs: list[dict], axis: str) -> tuple[np.ndarray, np.ndarray]:
    """Means over seeds of `axis` and of accuracy, after the steps at which all were evaluated."""
    common = sorted(set.intersection(*(set(r["step"]) for r in runs)))
    at = [[r["step"].index(step) for step in common] for r in runs]
    x, y = (
        np.mean([[r[key][i] for i in places] for r, places in zip(runs, at, strict=True)], axis=0)
        for key in (axis, "accuracy")
    )
    return x, y


def without_nan(value: object) -> object:
    """A value with null for NaN, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: without_nan(x) for key, x in value.items()}
    if isinstance(value, list):
        return [without_nan(x) for x in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def picture(curves: dict) -> bytes:
    """Accuracy against updates and against seconds as a PNG; a thin line a seed, a thick mean."""
    figure = Figure(figsize=(8, 3.2), dpi=200, layout="constrained")
    for index, (axis, label) in enumerate((("step", "step"), ("seconds", "seconds of steps")), 1):
        axes = figure.add_subplot(1, 2, index)
        for color, (name, runs) in enumerate(curves.items()):
            for r in runs:
                axes.plot(r[axis], r["accuracy"], color=f"C{color}", alpha=0.3, linewidth=0.7)
            axes.plot(*mean_curve(runs, axis), color=f"C{color}", linewidth=1.8, label=name)
        axes.set_xlabel(label)
        axes.set_ylabel("held-out accuracy")
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.legend(frameon=False)
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content, metadata={"Software": None})
    return content.getvalue()
