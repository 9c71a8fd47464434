"""Programs of several stages, each a program and a process of its own."""

import subprocess
import sys

from grpo_jax.checks import UsageError

# What a stage's process does first. Linux: prctl(PR_SET_PDEATHSIG, SIGKILL), which exec keeps. Not
# between fork and exec of this process, whose threads, if it has imported JAX, a fork may not meet.
_BOUND = """
import ctypes, os, sys
getattr(ctypes.CDLL(None), "prctl", lambda *_: None)(1, 9)
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])
"""


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
