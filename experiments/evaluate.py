"""Evaluate: python -m experiments.evaluate --workdir=DIR [--problems=N] [--samples=K].

Evaluates a run's newest checkpoint on held-out problems; prints a table and one JSON line.
With --config=FILE, on that config's problems; without a --workdir, the model in config.model.path.
--against=DIR,DIR asks other runs or Hugging Face directories the same, and compares them with it
problem by problem. RUN/checkpoints/STEP is one checkpoint of a run. --config=configs/benchmark.py
asks the problems of a file as DeepSeek-R1 was asked.
"""

import json
from pathlib import Path

from absl import flags

from grpo_jax.config.command_line import run_main
from grpo_jax.console.progress import checked, doing, importing, result_on_stdout

WORKDIR = flags.DEFINE_string("workdir", None, "a run's folder")
PROBLEMS = flags.DEFINE_integer(
    "problems", None, "held-out problems (default: the run's own eval.problems)", lower_bound=1
)
SAMPLES = flags.DEFINE_integer(
    "samples",
    None,
    "samples a problem for pass@k and maj@k (default: eval.samples)",
    lower_bound=0,
    upper_bound=2**16,
)
AGAINST = flags.DEFINE_list("against", [], "runs or Hugging Face directories to compare it with")


def main():
    result_on_stdout()
    with importing():  # JAX, which --help and bad flags need not
        from grpo_jax.sharding import using
        from grpo_jax.training.evaluation import evaluate_policy
        from grpo_jax.training.loading import asked_the_same, check_model

    ex, params, step = _examined()
    for other in AGAINST.value:
        check_model(Path(other))
    checked()
    problems = ex.config.eval.problems if PROBLEMS.value is None else PROBLEMS.value
    asked = "eval.problems" if PROBLEMS.value is None else "--problems"
    samples = ex.config.eval.samples if SAMPLES.value is None else SAMPLES.value
    results = []
    for folder in [None, *AGAINST.value]:
        if folder is not None:
            ex, params, step = asked_the_same(Path(folder), ex.config)
        name = str(folder or WORKDIR.value or ex.source)
        with ex.rewarder(("accuracy",)) as rewarder, using(ex.mesh), doing(f"evaluating {name}"):
            found = evaluate_policy(ex, params, rewarder, problems, samples, asked)
        print_table(f"{name}, step {step}: {ex.task.name}", found.metrics)
        results.append({"model": name, "step": step, **found.metrics, "singly": found.singly})
    leads = [_leads(results[0]["singly"], one.pop("singly")) for one in results[1:]]
    results[0].pop("singly")
    if leads:
        print_comparison(results, leads)
    own, *others = [{k: _json(v) for k, v in one.items()} for one in results]
    del own["model"]
    against = [one | {"lead": lead} for one, lead in zip(others, leads, strict=True)]
    print(json.dumps({"samples": samples, **own} | ({"against": against} if against else {})))


def _leads(first, other):
    """{measure: what the first leads the other by, problem by problem}; none of no problems."""
    from grpo_jax.statistics import paired

    return {name: paired(marks, other[name]) for name, marks in first.items() if len(marks)}


def _json(value):
    return None if value != value else value  # NaN


def _examined():
    """(experiment, params, step): the run's own, with the problems of --config if there is one."""
    from grpo_jax.config import resolve
    from grpo_jax.config.fields import FrozenFields
    from grpo_jax.errors import UsageError
    from grpo_jax.training.experiment import build
    from grpo_jax.training.loading import asked_the_same, load
    from grpo_jax.training.pretrained import pretrained

    config = flags.FLAGS.config and resolve(flags.FLAGS.config).to_dict()
    if WORKDIR.value is None:
        if not (config and config["model"]["path"]):
            raise UsageError(
                "--workdir=DIR is needed, the folder of a run, or --config=FILE with a model.path"
            )
        ex = build(FrozenFields(config))
        return ex, pretrained(ex.origin), 0
    if not config:
        return load(Path(WORKDIR.value))
    return asked_the_same(Path(WORKDIR.value), config)


def print_comparison(results, leads):
    """Print what the first model leads each other by, on the same problems: greedily, and by the
    mean over samples where there are any."""
    from rich.console import Console
    from rich.table import Table

    for measure in leads[0]:
        greedy = "greedy " if measure == "accuracy" else ""
        table = Table(title=f"{greedy}{measure}, problem by problem", title_justify="left")
        for name in ("model", measure, "95% interval", "first's lead", "95% interval", "p"):
            table.add_column(name, justify="left" if name == "model" else "right")
        for one, lead in zip(results, [None, *leads], strict=True):
            cells = [f"{one[measure]:.4f}", _interval(one, f"{measure}/")]
            if lead is not None:
                pair = lead[measure]
                cells += [f"{pair['difference']:+.4f}", _interval(pair), f"{pair['p']:.2g}"]
            table.add_row(one["model"], *cells)
        console = Console()
        console.width = max(console.width, 100)  # a file or a pipe says 80
        console.print(table)


def _interval(found, prefix=""):
    return f"{found[f'{prefix}low']:.4f} to {found[f'{prefix}high']:.4f}"


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
