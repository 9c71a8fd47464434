"""A sandbox for an untrusted Python program, made by the kernel.

The program runs in separate namespaces: no network, the loopback included; no processes except its
own, all of which end with it; no files except Python's, read-only, and an empty folder with a limit
on bytes and on files; no /proc, no environment, no file descriptors except the standard three. It
has no privileges, only the system calls that Python needs (`syscalls`), rlimits on CPU time,
processes and file size, and a limit on the memory of all its processes together (`memory`). What
its source says does not matter. Bubblewrap or util-linux make the namespaces (`launchers`).
"""

import contextlib
import functools
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from grpo_jax.rewards import memory
from grpo_jax.rewards.launchers import LAUNCHERS, Launcher, Limits
from grpo_jax.rewards.syscalls import filter_program

LOOK_S = 0.02  # between looks at a sandbox's memory
INSTALL = (
    "programs are run only in a sandbox, and there is none here: {}; install bubblewrap (Debian: "
    "apt install bubblewrap) and pip install 'grpo_jax[code]', on a Linux that allows namespaces"
)


class Run(NamedTuple):
    """The standard output of a run, and the limit that ended it; '' where it ended by itself."""

    output: bytes
    reason: str


def run(script: str, stdin: bytes, limits: Limits) -> Run:
    """Run a Python script on `stdin` in a new sandbox, which ends with the run.

    ValueError, with what to install, where there is no sandbox to be had.
    """
    launcher = check()
    with (
        memory.group(limits.memory) as group,
        _file(script.encode(errors="replace")) as code,
        _file(filter_program()) as rules,
        _file(stdin) as given,
        _file(b"") as output,
    ):
        process = subprocess.Popen(
            memory.entering(group, launcher(limits, code, rules)),
            stdin=given,
            stdout=output,
            stderr=subprocess.DEVNULL,
            pass_fds=(code, rules),
            env={},
        )

        if reason := _wait(process, limits, group):
            return Run(b"", reason)
        size = os.fstat(output).st_size
        if size > limits.output:
            return Run(b"", f"more than {limits.output} bytes of output")
        status = process.returncode
        return Run(os.pread(output, size, 0), f"exit status {status}" if status else "")


def _wait(launcher: subprocess.Popen, limits: Limits, group: Path | None) -> str:
    """Which limit ended the sandbox, '' for none. No exception leaves it running."""
    until = time.monotonic() + limits.wall_s
    above = 0  # looks in a row; one may count a process twice that is about to become another
    try:
        while not _ended(launcher, min(LOOK_S, until - time.monotonic())):
            if time.monotonic() > until:
                return f"more than {limits.wall_s:g} s"
            above = above + 1 if _too_much(launcher, limits, group) else 0
            if above == 2:
                return f"more than {limits.memory} bytes of memory"
        ran_out = group is not None and memory.ran_out(group)
        return f"more than {limits.memory} bytes of memory" if ran_out else ""
    finally:
        if launcher.poll() is None:
            # The launcher ends after its only child, the sandbox's first process, which ends after
            # all others: killed itself, it would leave them to die a little later.
            pid = launcher.pid
            first = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(int(first[0]) if first else pid, signal.SIGKILL)
            launcher.wait()


def _too_much(launcher: subprocess.Popen, limits: Limits, group: Path | None) -> bool:
    if group is not None:
        return memory.ran_out(group)
    return memory.exceeds(launcher.pid, limits.memory - limits.disk)


def _ended(process: subprocess.Popen, seconds: float) -> bool:
    """Whether the process ends within so many seconds; waits no longer than it takes to."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:  # a kernel before 5.3
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return process.poll() is not None
    try:
        select.select([fd], [], [], max(seconds, 0))
    finally:
        os.close(fd)
    return process.poll() is not None


@functools.cache
def check() -> Launcher:
    """What makes a sandbox here; ValueError, with what to install, where nothing can."""
    found = []
    for name, launcher in LAUNCHERS.items():
        try:
            with _file(b"") as code, _file(filter_program()) as rules:
                command, fds = launcher(Limits(), code, rules), (code, rules)
                done = subprocess.run(command, pass_fds=fds, env={}, capture_output=True, text=True)
        except (OSError, ImportError, RuntimeError) as error:
            found.append(f"{name}: {error}")
            continue
        if not done.returncode:
            return launcher
        found.append(f"{name}: {done.stderr.strip() or f'status {done.returncode}'}")
    raise ValueError(INSTALL.format("; ".join(found)))


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
