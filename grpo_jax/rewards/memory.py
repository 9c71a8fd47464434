"""The memory of a whole sandbox, held to a limit: by a cgroup, or where none can be made by a look
at all of its processes every few milliseconds.

Both count what processes share once. A cgroup counts all that the kernel keeps for them, too; the
looks count a full buffer for each pipe and socket, and the sandbox's files as if they were full.
"""

import contextlib
import functools
import itertools
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

BUFFER = 2**18  # bytes; a pipe holds 64 KiB, a socket net.core.wmem_default: 208 KiB
PREFIX = "grpo_jax-"
_COUNTER = itertools.count()
_STATUS = re.compile(rb"^Vm(?:RSS|Swap):\s+(\d+) kB", re.MULTILINE)
_SHARES = re.compile(rb"^(?:Swap)?Pss:\s+(\d+) kB", re.MULTILINE)

# Files of a memory cgroup by version: what is written into them, and where kills are counted.
_LIMITS = {
    1: {"memory.limit_in_bytes": "{}", "memory.memsw.limit_in_bytes": "{}"},
    2: {"memory.max": "{}", "memory.swap.max": "0", "memory.oom.group": "1"},
}
_EVENTS = {1: "memory.oom_control", 2: "memory.events"}


@contextlib.contextmanager
def group(limit: int) -> Iterator[Path | None]:
    """A cgroup without processes, limited to so many bytes; None where none can be made."""
    found = place()
    path = found and _made(*found, limit)
    try:
        yield path
    finally:
        if path:
            _remove(path)


def _made(parent: Path, version: int, limit: int) -> Path:
    path = parent / f"{PREFIX}{os.getpid()}-{next(_COUNTER)}"
    path.mkdir()
    try:
        for number, (name, value) in enumerate(_LIMITS[version].items()):
            if not number or (path / name).exists():  # swap is not counted everywhere
                (path / name).write_text(value.format(limit))
    except OSError:
        _remove(path)
        raise
    return path


def entering(path: Path | None, command: list[str]) -> list[str]:
    """The command, as a member of that cgroup from its first instruction on."""
    if path is None:
        return command
    enter = 'echo 0 > "$0" && exec "$@"'
    return ["/bin/sh", "-c", enter, str(path / "cgroup.procs"), *command]


def ran_out(path: Path) -> bool:
    """Whether the kernel has ended a process of the cgroup for its memory."""
    events = next(path / name for name in _EVENTS.values() if (path / name).exists())
    return any(
        name == "oom_kill" and count != "0"
        for name, count in (line.split() for line in events.read_text().splitlines())
    )


@functools.cache
def place() -> tuple[Path, int] | None:
    """The folder where cgroups can be made, and their version; None where there is none.

    It is found by making one. Those that a killed process has left there are removed.
    """
    for parent, version in _candidates():
        for left in parent.glob(f"{PREFIX}*-*"):
            if not Path("/proc", left.name.removeprefix(PREFIX).split("-")[0]).exists():
                _remove(left)
        try:
            path = _made(parent, version, 2**28)
        except OSError:
            continue
        try:
            subprocess.run(entering(path, ["true"]), check=True, capture_output=True, env={})
            return parent, version
        except (OSError, subprocess.CalledProcessError):
            continue
        finally:
            _remove(path)
    return None


def _candidates() -> Iterator[tuple[Path, int]]:
    """This process's memory cgroup; of version 2, where inner groups are empty, or that above."""
    own = {}
    for line in _lines("/proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        own[2 if not controllers else 1 if "memory" in controllers.split(",") else 0] = path
    for line in _lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split()[:3]
        version = {"cgroup": 1, "cgroup2": 2}.get(kind, 0)
        if version not in own or (version == 1 and "memory" not in options.split(",")):
            continue
        if not version or ".." in own[version] or not Path(own[version]).is_relative_to(root):
            continue
        here = Path(point) / Path(own[version]).relative_to(root)
        if version == 1:
            yield here, version
        for folder in (here, here.parent) * (version == 2):
            if "memory" in " ".join(_lines(folder / "cgroup.subtree_control")).split():
                yield folder, version


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:  # no cgroups here
        return []


def _remove(path: Path) -> None:
    """Remove a cgroup; one whose processes are still ending stays for the next to do so."""
    with contextlib.suppress(OSError):
        path.rmdir()


def exceeds(pid: int, limit: int) -> bool:
    """Whether a process and all that descend from it hold more bytes than that."""
    family = list(_family(pid))
    if sum(map(_resident, family)) + BUFFER * len(family) * 64 <= limit:
        return False  # whatever they share, and whatever is in their buffers
    buffers = len({name for one in family for name in _buffers(one)}) * BUFFER
    if sum(map(_resident, family)) + buffers <= limit:
        return False
    return sum(map(_share, family)) + buffers > limit


def _family(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):  # it has ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                yield from _family(int(child))


def _resident(pid: int) -> int:
    """Bytes of memory and swap that a process can reach, 0 where it has ended."""
    return _sum(pid, "status", _STATUS)


def _share(pid: int) -> int:
    """The same, what is shared divided by how many share it."""
    try:
        return _sum(pid, "smaps_rollup", _SHARES)
    except PermissionError:
        return _resident(pid)


def _sum(pid: int, file: str, lines: re.Pattern[bytes]) -> int:
    try:
        return 1024 * sum(map(int, lines.findall(Path(f"/proc/{pid}/{file}").read_bytes())))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _buffers(pid: int) -> Iterator[str]:
    """The pipes and sockets that a process has open."""
    with contextlib.suppress(OSError):  # it ends
        for fd in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if (name := os.readlink(fd.path)).startswith(("pipe:", "socket:")):
                    yield name
