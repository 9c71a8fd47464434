"""The variants that a config file names, each run with every seed."""

from pathlib import Path

from grpo_jax.config.load import load_config_file, load_module
from grpo_jax.console.programs import run_program
from grpo_jax.console.progress import doing
from grpo_jax.errors import UsageError, nearest


def variants(file: str) -> tuple[str, ...]:
    """The names of a config file's variants; UsageError without any."""
    names = tuple(getattr(load_module(file), "VARIANTS", ()))
    if len(names) < 2:
        raise UsageError(f"config file {file}: VARIANTS must name two variants or more: {names!r}")
    return names


def chosen(names: list[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """The names, each a known one with or without '@' and options; all known ones for none."""
    for name in names:
        if (plain := name.partition("@")[0]) not in known:
            near = nearest(plain, known)
            raise UsageError(f"--variants={name}: no such variant; the closest is {near!r}")
    return tuple(names) or known


def check_evaluated(file: str, names: tuple[str, ...]) -> None:
    """UsageError for a variant whose accuracy would not be known, before any is run."""
    for name in names:
        if not load_config_file(f"{file}:{name}").eval.every:
            raise UsageError(
                f"config.eval.every=0 of variant {name!r}: a comparison is of accuracy; valid: at "
                "least 1"
            )


def run_folder(folder: Path, name: str, seed: int) -> Path:
    """The folder of one run."""
    return folder / name / f"seed{seed}"


def run_variant(file: str, name: str, seed: int, folder: Path, start: str | None) -> None:
    """One run to its end, in a separate process, from the run of the variant `start` if there is
    one. UsageError where it fails."""
    run_program(
        "experiments.train",
        *(f"--config={file}:{name}", f"--config.seed={seed}"),
        *([f"--config.start={run_folder(folder, start, seed)}"] if start else []),
        f"--workdir={run_folder(folder, name, seed)}",
    )


def cost_of(file: str, name: str) -> dict[str, float]:
    """What a variant's learner holds and computes a step, from the compiler's own analysis."""
    from grpo_jax.config import resolve
    from grpo_jax.training.costs import learner_cost

    with doing(f"compiling {name}, for what it costs"):
        return learner_cost(resolve(load_config_file(f"{file}:{name}")))
