"""Evaluate: python -m experiments.evaluate --workdir=DIR [--problems=N] [--samples=K].

Scores the newest checkpoint of a run on held-out problems, and prints a table and one JSON line.
"""

import json

from absl import flags

from grpo_jax.command_line import run_main

PROBLEMS = flags.DEFINE_integer(
    "problems", None, "held-out problems (default: the run's own eval.problems)", lower_bound=1
)
SAMPLES = flags.DEFINE_integer(
    "samples", None, "samples a problem for pass@k and maj@k (default: eval.samples)", lower_bound=0
)


def main(workdir):
    from experiments.checkpoint import load  # imports JAX, which --help and bad flags need not
    from grpo_jax.evaluation import evaluate
    from grpo_jax.sharding import using

    ex, params, step = load(workdir)
    problems = ex.config.eval.problems if PROBLEMS.value is None else PROBLEMS.value
    samples = ex.config.eval.samples if SAMPLES.value is None else SAMPLES.value
    with ex.rewarder(("accuracy",)) as rewarder, using(ex.mesh):
        metrics = evaluate(ex, params, rewarder, problems, samples)
    print_table(f"{workdir}, step {step}", metrics)
    shown = {name: None if value != value else value for name, value in metrics.items()}  # NaN
    print(json.dumps({"step": step, "samples": samples, **shown}))


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
    run_main(main, with_config=False)
