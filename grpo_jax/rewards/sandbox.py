"""A sandbox for an untrusted Python program, made by the kernel.

The program runs in namespaces of its own: no network, the loopback included; no processes but its
own, all of which end with it; no files but Python's, read-only, and an empty folder with a limit on
bytes and on files; no /proc, no environment, no file descriptors but the standard three. It has no
privileges, and rlimits on CPU time, memory, processes and file size. What its source says plays no
part. Bubblewrap or util-linux make the namespaces (`launchers`).
"""

import contextlib
import functools
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from grpo_jax.rewards.launchers import LAUNCHERS, Launcher, seccomp

INSTALL = (
    "programs are run in a sandbox alone, and there is none here: {}; install bubblewrap (Debian: "
    "apt install bubblewrap) and pip install 'grpo_jax[code]', on a Linux that allows namespaces"
)


@dataclass(frozen=True)
class Limits:
    """What one run of a program may use: seconds, bytes and counts."""

    cpu_s: int = 2  # of each process
    wall_s: float = 5.0
    memory: int = 256 * 2**20  # of each process
    processes: int = 8  # and threads
    output: int = 2**20
    file_size: int = 2**20
    disk: int = 8 * 2**20
    files: int = 64

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"Limits.{name}={value!r} must be above 0")


class Run(NamedTuple):
    """The standard output of a run, and what it broke off for; '' where it ended by itself."""

    output: bytes
    reason: str


def run(script: str, stdin: bytes, limits: Limits) -> Run:
    """Run a Python script on `stdin` in a sandbox of its own, which ends with the run.

    ValueError, with what to install, where there is no sandbox to be had.
    """
    launcher = check()
    with (
        _file(script.encode(errors="replace")) as code,
        _file(_rules()) as rules,
        _file(stdin) as given,
        _file(b"") as output,
    ):
        process = subprocess.Popen(
            launcher(limits, code, rules),
            stdin=given,
            stdout=output,
            stderr=subprocess.DEVNULL,
            pass_fds=(code, rules),
            env={},
        )
        status = _wait(process, limits.wall_s)
        if status is None:
            return Run(b"", f"more than {limits.wall_s:g} s")
        size = os.fstat(output).st_size
        if size > limits.output:
            return Run(b"", f"more than {limits.output} bytes of output")
        return Run(os.pread(output, size, 0), f"exit status {status}" if status else "")


def _wait(launcher: subprocess.Popen, seconds: float) -> int | None:
    """The exit status; None where it took longer. No exception leaves a process running."""
    try:
        return launcher.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if launcher.poll() is None:
            # The launcher ends after its only child, the sandbox's first process, which ends after
            # all others: killed itself, it would leave them to die a little later.
            pid = launcher.pid
            first = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(int(first[0]) if first else pid, signal.SIGKILL)
            launcher.wait()


@functools.cache
def check() -> Launcher:
    """What makes a sandbox here; ValueError, with what to install, where nothing can."""
    found = []
    for name, launcher in LAUNCHERS.items():
        try:
            with _file(b"") as code, _file(_rules()) as rules:
                command, fds = launcher(Limits(), code, rules), (code, rules)
                done = subprocess.run(command, pass_fds=fds, env={}, capture_output=True, text=True)
        except (OSError, ImportError, RuntimeError) as error:
            found.append(f"{name}: {error}")
            continue
        if not done.returncode:
            return launcher
        found.append(f"{name}: {done.stderr.strip() or f'status {done.returncode}'}")
    raise ValueError(INSTALL.format("; ".join(found)))


@functools.cache
def _rules() -> bytes:
    with tempfile.TemporaryFile() as file:
        seccomp().export_bpf(file)
        file.seek(0)
        return file.read()


@contextlib.contextmanager
def _file(content: bytes) -> Iterator[int]:
    """A file in memory, without a name, at its beginning."""
    fd = os.memfd_create("sandbox")
    try:
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)
