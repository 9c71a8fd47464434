"""Compare variants: python -m experiments.compare --config=configs/grpo_vs_ppo.py --seeds=5.

The config file's VARIANTS names what its get_config(name) gives. Every variant runs with every
seed, five of them by default, each run in a separate process and folder, DIR/<variant>/seed<n>: one
that is there is resumed, so a comparison can be stopped and resumed, and given more seeds. Where
the file has a START, that is run first, and all variants start from its run with their seed. Writes
DIR/comparison.md, the tables, DIR/comparison.png, accuracy against updates and seconds, and
DIR/comparison.json. --workdir is runs/<config name> by default.
--pass_at=32 adds what is right among 32 completions a problem, of every variant and of START.
"""

from pathlib import Path

from absl import flags

from experiments import seeds, stages
from grpo_jax.config.command_line import run_main
from grpo_jax.config.load import load_config_file, load_module
from grpo_jax.console.progress import doing, importing

flags.adopt_module_key_flags(stages)
flags.adopt_module_key_flags(seeds)
CHOSEN = flags.DEFINE_list("variants", [], "names to compare instead of the file's VARIANTS")
PASS_AT = flags.DEFINE_integer(
    "pass_at", 0, "the largest k of pass@k and maj@k", lower_bound=0, upper_bound=2**16
)
WRITTEN = ("comparison.md", "comparison.png", "comparison.json")  # in --workdir
TARGET = flags.DEFINE_float("target", 0.9, "accuracy whose time is reported", lower_bound=0.0)


def main():
    file, folder = stages.config_and_folder()
    names = chosen(CHOSEN.value, variants(file))
    start = getattr(load_module(file), "START", None)
    every = range(seeds.SEEDS.value or 5)
    check_evaluated(names)
    stages.check_free(folder, WRITTEN, [path(folder, n, s) for n in names for s in every])
    for seed in every:
        for name in (*([start] if start else []), *names):
            run(name, seed, folder, None if name == start else start)
    with importing():
        from grpo_jax.training.comparison import write_comparison

    asked = (*([start] if start and PASS_AT.value else []), *names)
    runs = {name: [path(folder, name, s) for s in every] for name in asked}
    costs = {name: cost(name) for name in names}
    write_comparison(folder, runs, costs, TARGET.value, PASS_AT.value)
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
    """One run to its end, in a separate process, from the run of the variant `start` if there is
    one. UsageError where it fails."""
    stages.run(
        "experiments.train",
        *(f"--config={stages.CONFIG.value}:{name}", f"--config.seed={seed}"),
        *([f"--config.start={path(folder, start, seed)}"] if start else []),
        f"--workdir={path(folder, name, seed)}",
    )


def cost(name: str) -> dict[str, float]:
    """What a variant's learner holds and computes a step, from the compiler's own analysis."""
    from grpo_jax.config import resolve
    from grpo_jax.training.costs import learner_cost

    with doing(f"compiling {name}, for what it costs"):
        return learner_cost(resolve(load_config_file(f"{stages.CONFIG.value}:{name}")))


if __name__ == "__main__":
    run_main(main, with_config=False, with_workdir=False)
