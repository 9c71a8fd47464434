"""The sandbox of an ordinary user: its tests again, where these run as root, as nobody."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/rewards/test_sandbox.py", "tests/rewards/test_sandbox_memory.py")
USER = 65533


def as_user(command: list[str]) -> list[str]:
    """The command, run by USER in a file system where the interpreter and this checkout lie open.

    They may be root's own, below a folder such as /root: an empty one then lies over that folder,
    with these two in it, seen by this command and nobody else.
    """
    python = {str(Path(p).resolve()) for p in (sys.base_prefix, sys.prefix)}
    paths = sorted({*python, str(ROOT)})
    closed = {path: _closed(Path(path)) for path in paths}
    steps = ["umask 022", "mount -t tmpfs -o mode=755 none /mnt"]
    for number, path in enumerate(paths):
        if closed[path]:
            steps += [f"mkdir /mnt/{number}", f"mount --bind {shlex.quote(path)} /mnt/{number}"]
    for folder in sorted({str(folder) for folder in closed.values() if folder}):
        steps.append(f"mount -t tmpfs -o mode=755 none {shlex.quote(folder)}")
    for number, path in enumerate(paths):
        if closed[path]:
            quoted = shlex.quote(path)
            steps += [f"mkdir -p {quoted}", f"mount --move /mnt/{number} {quoted}"]
    to_user = f"--reuid={USER} --regid={USER} --clear-groups --inh-caps=-all --bounding-set=-all"
    steps.append(f"exec setpriv {to_user} {shlex.join(command)}")
    return ["unshare", "--mount", "sh", "-ec", "\n".join(steps)]


def _closed(path: Path) -> Path | None:
    """The topmost folder on the way to a path that others may not enter."""
    above = reversed([path, *path.parents])
    return next((folder for folder in above if not folder.stat().st_mode & 1), None)


def test_an_ordinary_user_has_the_same_sandbox():
    if os.geteuid() != 0:
        pytest.skip("these tests run as an ordinary user: test_sandbox* are that of one")
    tried = subprocess.run(as_user([sys.executable, "-c", ""]), capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"root cannot run Python as another user here: {tried.stderr.strip()}")
    pytest_ = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "-rs", *TESTS]
    done = subprocess.run(
        as_user(pytest_),
        cwd=ROOT,
        env=os.environ | {"HOME": "/tmp", "TMPDIR": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "there is none here" in done.stdout:  # of the launchers, one or both
        pytest.skip(f"as an ordinary user: {done.stdout}")
