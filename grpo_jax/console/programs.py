"""Run a program of ours in a separate process."""

import subprocess
import sys

from grpo_jax.console import interrupts
from grpo_jax.errors import UsageError

# What the program's process does first. Linux: prctl(PR_SET_PDEATHSIG, SIGKILL), which exec keeps.
# Not between fork and exec of this process, whose threads, if it has imported JAX, a fork may not
# meet.
_BOUND = """
import ctypes, os, sys
getattr(ctypes.CDLL(None), "prctl", lambda *_: None)(1, 9)
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])
"""


def run_program(module: str, *flags: str) -> None:
    """Run `python -m module flags` to its end, after printing the command.

    Where it fails, UsageError names it; SystemExit where the program itself has said why.

    A program of ours resumes where it was cut off, so running it again costs no work. On Linux it
    ends with this process, so that even after SIGKILL the next one finds its folder free.
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
