"""A sandbox for an untrusted Python program, made by the kernel through bubblewrap.

The program runs in namespaces of its own: no network, the loopback included; no processes but its
own, all of which end with it; no files but Python's, read-only, and an empty folder with a limit on
bytes and on files; no /proc, no environment, no file descriptors but the standard three. It has no
privileges, and rlimits on CPU time, memory, processes and file size. Started by root, it runs as a
user that nobody else is. What its source says plays no part.
"""

import contextlib
import errno
import functools
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

INSTALL = (
    "programs are run in a sandbox alone, and there is none here: {}; install bubblewrap (Debian: "
    "apt install bubblewrap) and pip install 'grpo_jax[code]', on a Linux that allows namespaces"
)
SYSTEM = ("/usr/bin", "/usr/lib", "/usr/lib64")  # the shell, mount, setpriv, Python's libraries
SCRIPT = "/script.py"
_NEW_USERS = 0x10000000  # CLONE_NEWUSER of clone(2)
_USERS = range(2**20, 2**30)  # numbers that no account has


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
    timed_out: bool = False


def run(script: str, stdin: bytes, limits: Limits) -> Run:
    """Run a Python script on `stdin` in a sandbox of its own, which ends with the run.

    ValueError, with what to install, where there is no sandbox to be had.
    """
    check()
    with (
        _file(script.encode(errors="replace")) as code,
        _file(_filter()) as rules,
        _file(stdin) as given,
        _file(b"") as output,
    ):
        gone, held = os.pipe()
        try:
            try:
                process = subprocess.Popen(
                    _command(limits, code, rules, held),
                    stdin=given,
                    stdout=output,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(code, rules, held),
                    env={},
                )
            finally:
                os.close(held)
            status = _wait(process, limits.wall_s)
            os.read(gone, 1)  # until the sandbox's first process ends, and so the kernel the others
        finally:
            os.close(gone)
        if status is None:
            return Run(b"", f"more than {limits.wall_s:g} s", timed_out=True)
        size = os.fstat(output).st_size
        if size > limits.output:
            return Run(b"", f"more than {limits.output} bytes of output")
        return Run(os.pread(output, size, 0), f"exit status {status}" if status else "")


def _wait(process: subprocess.Popen, seconds: float) -> int | None:
    """The exit status; None where it took longer. No exception leaves the process running."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            process.kill()  # which ends all that is in the sandbox
            process.wait()


@functools.cache
def check() -> None:
    """ValueError, with what to install, unless a sandbox can be made here."""
    try:
        with _file(b"") as code, _file(_filter()) as rules:
            command = _command(Limits(), code, rules)
            done = subprocess.run(
                command, pass_fds=(code, rules), capture_output=True, text=True, env={}
            )
    except (OSError, ImportError, RuntimeError) as error:
        raise ValueError(INSTALL.format(error)) from error
    if done.returncode:
        raise ValueError(INSTALL.format(done.stderr.strip() or f"status {done.returncode}"))


@functools.cache
def _filter() -> bytes:
    """A seccomp filter against namespaces of a program's own, in which it would have privileges."""
    import pyseccomp

    f = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    denied = pyseccomp.ERRNO(errno.EPERM)
    for name in ("unshare", "setns", "ptrace", "process_vm_readv", "process_vm_writev", "bpf"):
        f.add_rule(denied, name)
    mask = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _NEW_USERS, _NEW_USERS)
    f.add_rule(denied, "clone", mask)
    f.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")  # its flags lie in memory; libc has clone
    with tempfile.TemporaryFile() as file:
        f.export_bpf(file)
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


def _command(limits: Limits, code: int, rules: int, held: int | None = None) -> list[str]:
    """The sandbox around Python; script, seccomp filter and what lives as long: descriptors."""
    root = os.geteuid() == 0
    capabilities = ["SYS_ADMIN", "SETPCAP", *["SETUID", "SETGID"] * root]  # gone before Python
    python = Path(sys.base_prefix)
    folders = [folder for folder in SYSTEM if Path(folder).is_dir()]
    folders += [str(python)] * (not python.is_relative_to("/usr/lib") and str(python) != "/usr")
    parents = {str(p): None for f in folders for p in reversed(Path(f).parents[:-1])}
    return [
        *(shutil.which("bwrap") or "bwrap", "--die-with-parent", "--new-session", "--clearenv"),
        *(
            "--unshare-ipc",
            "--unshare-pid",
            "--unshare-net",
            "--unshare-uts",
            "--unshare-cgroup-try",
        ),
        *(["--unshare-user"] if not root else []),
        *(a for c in capabilities for a in ("--cap-add", f"CAP_{c}")),
        *(a for p in [*parents, "/box", "/dev"] for a in ("--perms", "0755", "--dir", p)),
        *(a for folder in folders for a in ("--ro-bind", folder, folder)),
        *(a for name in ("bin", "lib", "lib64") for a in ("--symlink", f"usr/{name}", f"/{name}")),
        *(
            a
            for name in ("null", "urandom")
            for a in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")
        ),
        *("--perms", "0644", "--ro-bind-data", str(code), SCRIPT, "--remount-ro", "/"),
        *("--seccomp", str(rules)),
        *(["--sync-fd", str(held)] if held is not None else []),
        *("/bin/sh", "-c", _limited(limits, root)),
    ]


def _limited(limits: Limits, root: bool) -> str:
    """The shell's part: mount the empty folder, set the limits, drop all privileges, be Python."""
    user = random.SystemRandom().choice(_USERS)
    size = max(limits.output, limits.file_size) // 512 + 1  # the shell counts blocks
    options = f"size={limits.disk},nr_inodes={limits.files},mode=1777,nosuid,nodev"
    steps = (
        f"mount -t tmpfs -o {options} none /box",
        "cd /box",
        f"ulimit -t {limits.cpu_s}",
        f"ulimit -v {limits.memory // 1024}",
        f"ulimit -p {limits.processes}",
        f"ulimit -f {size}",
        "ulimit -n 64",
        "ulimit -c 0",
        "exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all "
        + (f"--reuid={user} --regid={user} --clear-groups " if root else "")
        + f"-- {shlex.quote(os.path.realpath(sys.executable))} -I -S -B -X utf8 {SCRIPT}",
    )
    return " && ".join(steps)
