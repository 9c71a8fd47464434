"""Shared by the tests of programs: each kind of sandbox, and small limits."""

import os
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from grpo_jax.rewards import launchers, sandbox
from grpo_jax.rewards.code import Limits, judge
from grpo_jax.rewards.launchers import LAUNCHERS
from grpo_jax.rewards.sandbox import check, run

QUICK = Limits(cpu_s=1, wall_s=2.0, memory=128 * 2**20, disk=2**20, files=32)
LONG = Limits(cpu_s=5, wall_s=20.0)  # for what must not fail where the machine is busy
SECRET = "a52b1c9e"  # what no program is given
SCRIPT = f"/script{os.getpid()}.py"  # this process's programs, not those of other runs


@pytest.fixture(params=LAUNCHERS, scope="module", autouse=True)
def launcher(request):
    """Every test in both kinds of sandbox."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox, "LAUNCHERS", {request.param: LAUNCHERS[request.param]})
        patch.setattr(launchers, "SCRIPT", SCRIPT)
        check.cache_clear()
        try:
            check()
        except ValueError as error:
            pytest.skip(str(error))
        yield request.param
    check.cache_clear()


def passes(program, *cases, limits=LONG):
    return judge(textwrap.dedent(program), cases, limits)


def said(program, limits=LONG):
    """What a program printed; it must have ended by itself, with status 0."""
    done = run(textwrap.dedent(program), b"", limits)
    assert done.reason == "", done
    return done.output.decode()


def at_once(function, items):
    """The function of each item, four at a time: most of the time they wait."""
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(function, items))


def left_behind():
    """The processes on this machine that run SCRIPT."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it ended meanwhile
                continue
            found += [entry.name] * (SCRIPT.encode() in words and b"-I" in words)
    return found
