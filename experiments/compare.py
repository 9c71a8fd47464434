"""Compare variants: python -m experiments.compare --config=configs/grpo_vs_ppo.py --seeds=5.

The config file's VARIANTS names what its get_config(name) gives. Every variant runs with every
seed, five of them by default, in turns, each run in a process and a folder of its own,
DIR/<variant>/seed<n>: one that is there is gone on with, so a comparison can be stopped and
resumed, and given more seeds. Where the file has a START, that is run first, and all variants start
from its run with their seed. Writes DIR/comparison.md, the tables, DIR/comparison.png, accuracy
against updates and seconds, and DIR/comparison.json. --workdir is runs/<config name> by default.
--pass_at=32 adds what is right among 32 completions a problem, of every variant and of START.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import seeds, stages
from grpo_jax.config.command_line import load_config_file, load_module, run_main
from grpo_jax.console.progress import doing, importing, say

flags.adopt_module_key_flags(stages)
flags.adopt_module_key_flags(seeds)
CHOSEN = flags.DEFINE_list("variants", [], "names to compare instead of the file's VARIANTS")
PASS_AT = flags.DEFINE_integer(
    "pass_at", 0, "the largest k of pass@k and maj@k", lower_bound=0, upper_bound=2**16
)
WRITTEN = ("comparison.md", "comparison.png", "comparison.json")  # in --workdir
TARGET = flags.DEFINE_float("target", 0.9, "accuracy whose time is told", lower_bound=0.0)


def main():
    from grpo_jax.runs.run import write_atomically

    file, folder = stages.config_and_folder()
    names = chosen(CHOSEN.value, variants(file))
    start = getattr(load_module(file), "START", None)
    every = range(seeds.SEEDS.value or 5)
    check_evaluated(names)
    stages.check_free(folder, WRITTEN, [path(folder, n, s) for n in names for s in every])
    for seed in every:
        for name in (*([start] if start else []), *names):
            run(name, seed, folder, None if name == start else start)
    curves = {name: [curve(path(folder, name, s)) for s in every] for name in names}
    with importing():
        from experiments import costs as _  # noqa: F401
    costs = {name: cost(name) for name in names}
    tables = [*learning_table(curves, TARGET.value), "", *cost_table(costs)]
    drawn = {}
    if PASS_AT.value:
        asked = (*([start] if start else []), *names)
        drawn = {n: [sampled(path(folder, n, s), PASS_AT.value) for s in every] for n in asked}
        tables += ["", *sampled_table(drawn)]
    text = "\n".join(tables)
    print(text)
    write_atomically(folder / "comparison.md", (text + "\n").encode())
    with doing("drawing comparison.png"):
        write_atomically(folder / "comparison.png", picture(curves))
    kept = {"seeds": len(every), "costs": costs, "learning": summary(curves, TARGET.value)}
    kept |= {"curves": curves} | ({"sampled": drawn} if drawn else {})
    write_atomically(folder / "comparison.json", json.dumps(_json(kept)).encode())
    say(f"{folder / 'comparison.md'} has the tables, comparison.png the curves")
    return 0


def variants(file: str) -> tuple[str, ...]:
    """The names of a config file's variants; UsageError without any."""
    from grpo_jax.errors import UsageError

    names = tuple(getattr(load_module(file), "VARIANTS", ()))
    if len(names) < 2:
        raise UsageError(f"config file {file}: VARIANTS must name two variants or more: {names!r}")
    return names


def chosen(names: list[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """The names, each a known one with or without '@' and options; all known ones for none."""
    from grpo_jax.errors import UsageError, nearest

    for name in names:
        if (plain := name.partition("@")[0]) not in known:
            near = nearest(plain, known)
            raise UsageError(f"--variants={name}: no such variant; the closest is {near!r}")
    return tuple(names) or known


def check_evaluated(names: tuple[str, ...]) -> None:
    """UsageError for a variant whose accuracy would not be known, before any is run."""
    from grpo_jax.errors import UsageError

    for name in names:
        if not load_config_file(f"{stages.CONFIG.value}:{name}").eval.every:
            raise UsageError(
                f"config.eval.every=0 of variant {name!r}: a comparison is of accuracy; valid: at "
                "least 1"
            )


def path(folder: Path, name: str, seed: int) -> Path:
    """The folder of one run."""
    return folder / name / f"seed{seed}"


def run(name: str, seed: int, folder: Path, start: str | None) -> None:
    """One run to its end, in a process of its own, from the run of the variant `start` if there is
    one. UsageError where it fails."""
    stages.run(
        "experiments.train",
        *(f"--config={stages.CONFIG.value}:{name}", f"--config.seed={seed}"),
        *([f"--config.start={path(folder, start, seed)}"] if start else []),
        f"--workdir={path(folder, name, seed)}",
    )


def curve(folder: Path) -> dict[str, list[float]]:
    """Held-out accuracy after each evaluation of a run, with the updates' steps and seconds.

    Accuracy is NaN where the task's abstains on all problems. Seconds are those of steps,
    compilation left out; evaluations are not counted.
    """
    from grpo_jax.runs.run import read_steps

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


def summary(curves: dict, target: float) -> dict:
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
        told = f"{np.median(reached):.0f}" if reached else "never"
        if 0 < len(reached) < len(values["after"]):
            told += f" ({len(reached)} of {len(values['after'])} seeds)"
        cells = [interval(values["before"]), interval(values["after"]), lead]
        cells += [interval(values["step_seconds"], 2), told]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def interval(values: list[float], digits: int = 3) -> str:
    """Mean and 95% t interval over seeds; "" where one has none."""
    from grpo_jax.statistics import seed_interval

    if np.isnan(values).any():
        return ""
    mean, low, high = seed_interval(values)
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def cost(name: str) -> dict[str, float]:
    """What a variant's learner holds and computes a step, from the compiler's own analysis."""
    from experiments.costs import learner_cost
    from grpo_jax.config import resolve

    with doing(f"compiling {name}, for what it costs"):
        return learner_cost(resolve(load_config_file(f"{stages.CONFIG.value}:{name}")))


def cost_table(costs: dict) -> list[str]:
    """A Markdown table of the learner's costs."""
    units = {"parameters": 2**20, "optimizer": 2**20, "peak": 2**20, "flop": 1e9}
    heads = ["parameters, MiB", "optimizer, MiB", "peak, MiB", "GFLOP a step"]
    rows = [f"| learner | {' | '.join(heads)} |", "|---" * 5 + "|"]
    for name, values in costs.items():
        cells = [f"{values[key] / unit:.1f}" for key, unit in units.items()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def sampled(folder: Path, samples: int) -> dict[str, float]:
    """pass@k and maj@k of a run's newest checkpoint on its held-out problems; see `evaluate`."""
    from experiments.checkpoint import load
    from grpo_jax.sharding import using
    from grpo_jax.training.evaluation import evaluate

    ex, params, _ = load(folder)
    sampling = doing(f"sampling {folder}'s model")
    with ex.rewarder(("accuracy",)) as rewarder, using(ex.mesh), sampling:
        return evaluate(ex, params, rewarder, ex.config.eval.problems, samples)


def sampled_table(found: dict[str, list[dict[str, float]]]) -> list[str]:
    """A Markdown table of pass@k and maj@k, and of each variant's gain over the first, by seed."""
    first, *others = found
    values = {
        measure: {name: [run[measure] for run in runs] for name, runs in found.items()}
        for measure in found[first][0]
        if measure == "accuracy" or ("@" in measure and "/" not in measure)
    }
    heads = [first, *(head for name in others for head in (name, f"{name}'s gain"))]
    rows = [
        f"| of {PASS_AT.value} samples | {' | '.join(heads)} |",
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


def _json(value: Any) -> Any:
    """A value with null for NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _json(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_json(x) for x in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def picture(curves: dict) -> bytes:
    """Accuracy against updates and against seconds as a PNG; a thin line a seed, a thick mean."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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


if __name__ == "__main__":
    run_main(main, with_config=False, with_workdir=False)
