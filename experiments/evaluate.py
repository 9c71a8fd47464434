"""Evaluate: python -m experiments.evaluate --workdir=DIR [--problems=N] [--samples=K].

Scores the newest checkpoint of a run on held-out problems, and prints a table and one JSON line.
With --config=FILE, on that config's problems; without a --workdir, the model in config.model.path.
"""

import json
from pathlib import Path

from absl import flags
from ml_collections import FrozenConfigDict

from grpo_jax.command_line import run_main

WORKDIR = flags.DEFINE_string("workdir", None, "a run's folder")
PROBLEMS = flags.DEFINE_integer(
    "problems", None, "held-out problems (default: the run's own eval.problems)", lower_bound=1
)
SAMPLES = flags.DEFINE_integer(
    "samples", None, "samples a problem for pass@k and maj@k (default: eval.samples)", lower_bound=0
)


def main():
    from grpo_jax.evaluation import evaluate  # imports JAX, which --help and bad flags need not
    from grpo_jax.sharding import using

    ex, params, step = _examined()
    problems = ex.config.eval.problems if PROBLEMS.value is None else PROBLEMS.value
    samples = ex.config.eval.samples if SAMPLES.value is None else SAMPLES.value
    with ex.rewarder(("accuracy",)) as rewarder, using(ex.mesh):
        metrics = evaluate(ex, params, rewarder, problems, samples)
    print_table(f"{WORKDIR.value or ex.source}, step {step}: {ex.task.name}", metrics)
    shown = {name: None if value != value else value for name, value in metrics.items()}  # NaN
    print(json.dumps({"step": step, "samples": samples, **shown}))


def _examined():
    """(experiment, params, step): the run's own, with the problems of --config if there is one."""
    from experiments.checkpoint import load
    from grpo_jax.config import UsageError, resolve
    from grpo_jax.experiment import build
    from grpo_jax.pretrained import pretrained

    config = flags.FLAGS.config and resolve(flags.FLAGS.config).to_dict()
    if WORKDIR.value is None:
        if not (config and config["model"]["path"]):
            raise UsageError(
                "--workdir=DIR is needed, the folder of a run, or --config=FILE with a model.path"
            )
        ex = build(FrozenConfigDict(config))
        return ex, pretrained(ex), 0
    ex, params, step = load(Path(WORKDIR.value))
    if config:
        own = ex.config.to_dict()
        kept = {name: own[name] for name in ("model", "tokenizer", "mesh")}
        ex = build(FrozenConfigDict(config | kept))
    return ex, params, step


def print_table(title, metrics):
    """Print each metric that is not itself the end of an interval, with its 95% interval."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right")
    for name, value in metrics.items():
        if name.endswith(("/low", "/high")):
            continue
        low, high = metrics.get(f"{name}/low"), metrics.get(f"{name}/high")
        interval = "" if low is None else f"{low:.4f} to {high:.4f}"
        shown = str(value) if isinstance(value, int) else f"{value:.4f}"
        table.add_row(name, shown, interval)
    Console().print(table)


if __name__ == "__main__":
    run_main(main, with_workdir=False)
