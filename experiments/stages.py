"""Programs of several stages, each a program in a separate process."""

from collections.abc import Iterable
from pathlib import Path

from absl import flags

from grpo_jax.config.command_line import default_workdir
from grpo_jax.errors import UsageError
from grpo_jax.files import holds_run, inside_run

# Of every such program: it calls flags.adopt_module_key_flags(stages), for its --help.
CONFIG = flags.DEFINE_string("config", None, "a Python file with get_config(name)")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the runs; default runs/<config name>")


def config_and_folder() -> tuple[str, Path]:
    """--config, and --workdir or its default; UsageError without a --config, and where the folder
    is one run's, or what rejection sampling left."""
    if CONFIG.value is None:
        raise UsageError("--config=configs/<name>.py is needed: what the stages are configured by")
    folder = Path(WORKDIR.value or default_workdir(CONFIG.value))
    stands = inside_run(folder)
    for name in ("config.json", "rule.json"):
        if (folder / name).exists():
            stands = f"holds a {name}, and so is no folder of several runs"
    if stands is not None:
        raise UsageError(f"--workdir={folder} {stands}; valid: a new folder")
    return CONFIG.value, folder


def check_free(folder: Path, written: Iterable[str], runs: Iterable[Path]) -> None:
    """UsageError where a file that a program is to write stands in `folder`, and none of its runs
    is there: then the program has not written it."""
    there = [name for name in written if (folder / name).exists()]
    if there and not any(map(holds_run, runs)):
        raise UsageError(
            f"--workdir={folder} holds {there[0]}, and none of the runs that it would be of; "
            "valid: a new folder"
        )
