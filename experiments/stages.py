"""Programs of several stages, each a program in a separate process."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from absl import flags

from grpo_jax.config.command_line import default_workdir
from grpo_jax.console import interrupts
from grpo_jax.errors import UsageError
from grpo_jax.files import holds_run, inside_run

# Of every such program: it calls flags.adopt_module_key_flags(stages), for its --help.
CONFIG = flags.DEFINE_string("config", None, "a Python file with get_config(name)")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the runs; default runs/<config name>")

# What a stage's process does first. Linux: prctl(PR_SET_PDEATHSIG, SIGKILL), which exec keeps. Not
# between fork and exec of this process, whose threads, if it has imported JAX, a fork may not meet.
_BOUND = """
import ctypes, os, sys
getattr(ctypes.CDLL(None), "prctl", lambda *_: None)(1, 9)
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])
"""


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


def run(module: str, *flags: str) -> None:
    """Run `python -m module flags` to its end, after printing the command.

    Where it fails, UsageError names it; SystemExit where the stage itself has said why.

    A stage resumes where it was cut off, so running it again costs no work. On Linux it ends
    with this process, so that even after SIGKILL the next one finds its folder free.
    """
    command = " ".join((module, *flags))
    print(f"--- {command}", flush=True)
    process = subprocess.Popen([sys.executable, "-c", _BOUND, module, *flags])
    try:
        status = process.wait()
    except KeyboardInterrupt:  # which reached the stage too: it saves its work and leaves
        status = process.wait()
        if not status:
            raise
    if status in (2, interrupts.STATUS):
        sys.exit(status)
    if status:
        raise UsageError(f"{command}: ended with status {status}")
