"""The memory of a sandbox, all of its processes together, by a cgroup and by looks."""

import textwrap
from dataclasses import replace

import pytest
from sandboxes import LONG, QUICK, at_once, launcher, said

from grpo_jax.rewards import memory
from grpo_jax.rewards.code import Limits
from grpo_jax.rewards.sandbox import run

__all__ = ["launcher"]

# Each holds more than 128 MiB for as long as it can, no process of the first three as much.
HOARDS = {
    "processes": """
        import os, time
        for _ in range(4):
            if os.fork() == 0:
                held = bytearray(60 * 2**20)
                break
        time.sleep(5)
    """,
    "shared": """
        import mmap, os, time
        held = [mmap.mmap(-1, 2**26) for _ in range(3)]
        for m in held:
            if os.fork() == 0:
                for page in range(0, len(m), 4096): m[page] = 1
                break
        time.sleep(5)
    """,
    "sockets": """
        import os, socket, time
        for _ in range(24):
            if os.fork() == 0: break
        held = []
        try:
            while True:
                held += socket.socketpair()
                for end in held[-2:]:
                    end.setblocking(False)
                    try:
                        while True: end.send(bytes(2**16))
                    except BlockingIOError: pass
        except OSError: pass
        time.sleep(5)
    """,
    "one": "import time\nheld = bytearray(2**28)\ntime.sleep(5)",
}
# What is shared counts once: 4 x 60 MiB, of which no page is written to, and a pool's interpreters.
MODEST = """
    import os, time
    held = bytearray(60 * 2**20)
    children = []
    for _ in range(4):
        if (child := os.fork()) == 0:
            time.sleep(0.2)
            os._exit(0)
        children.append(child)
    for child in children: os.waitpid(child, 0)
    print("done")
"""


@pytest.mark.parametrize("how", ["cgroup", "looks"])
def test_memory_is_limited_of_the_whole_sandbox(how, monkeypatch):
    if how == "looks":
        monkeypatch.setattr(memory, "place", lambda: None)
    elif memory.place() is None:
        pytest.skip("no memory cgroup can be made here by this user: the looks are what limits")
    limits = replace(LONG, memory=QUICK.memory)
    done = at_once(lambda name: run(textwrap.dedent(HOARDS[name]), b"", limits), HOARDS)
    assert {d.reason for d in done} == {f"more than {QUICK.memory} bytes of memory"}
    assert said(MODEST, limits) == "done\n"
    place = memory.place()
    assert place is None or not list(place[0].glob(f"{memory.PREFIX}*"))


def test_the_cgroup_is_found_where_it_can_be_made(monkeypatch):
    files = {
        "/proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/\n0::/user/shell",
        "/proc/self/mountinfo": (
            "35 31 0:32 / /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory\n"
            "36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
            "40 31 0:37 /user /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
            "41 31 0:38 /else /mnt rw - cgroup2 cgroup2 rw\n"
            "42 31 0:39 / /tmp rw - tmpfs none rw"
        ),
        "/sys/fs/cgroup/unified/cgroup.subtree_control": "cpu memory pids",
    }
    monkeypatch.setattr(memory, "_lines", lambda path: files.get(str(path), "").splitlines())
    found = [(str(path), version) for path, version in memory._candidates()]
    assert found == [("/sys/fs/cgroup/memory/job", 1), ("/sys/fs/cgroup/unified", 2)]


def test_limits_must_be_above_zero_and_hold_each_other():
    with pytest.raises(ValueError, match=r"Limits.cpu_s=0 must be above 0"):
        Limits(cpu_s=0)
    with pytest.raises(ValueError, match=r"Limits.disk=64 must be below Limits.memory=64, which"):
        Limits(memory=64, disk=64)
