"""Programs of several stages, each a program and a process of its own."""

import subprocess
import sys
from pathlib import Path

from absl import flags

from grpo_jax.checks import UsageError
from grpo_jax.command_line import default_workdir
from grpo_jax.folders import inside_run

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


def run(module: str, *flags: str) -> None:
    """Run `python -m module flags` to its end, told of first; UsageError where it fails.

    A stage of ours goes on where it was cut off, so to run it again costs no work. On Linux it dies
    with this process, so that even after SIGKILL the next one finds its folder free.
    """
    command = " ".join((module, *flags))
    print(f"--- {command}", flush=True)
    process = subprocess.Popen([sys.executable, "-c", _BOUND, module, *flags])
    try:
        status = process.wait()
    except KeyboardInterrupt:  # which reached the stage too: it saves its work and leaves
        status = process.wait()
    if status:
        raise UsageError(f"{command}: ended with status {status}")
