"""The command lines that make the sandbox: bubblewrap's, and util-linux's where that is missing.

Both put a shell, the sandbox's first process, into new namespaces with a root of Python's files. It
mounts the empty folder and starts Python with limits and without privileges. Started by root,
Python runs as a user that nobody else is.
"""

import errno
import os
import random
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCRIPT = "/script.py"
SYSTEM = ("/usr/bin", "/usr/lib", "/usr/lib64")  # the shell, mount, setpriv, Python's libraries
LINKS = ("bin", "lib", "lib64")
DEVICES = ("null", "urandom")
Launcher = Callable[[Any, int, int], list[str]]  # of limits, script and seccomp rules: descriptors

_NEW_USERS = 0x10000000  # CLONE_NEWUSER of clone(2)
_USERS = range(2**20, 2**30)  # numbers that no account has
_ROOT = "/sys"  # a folder that is everywhere and from which nothing is needed, to mount on

# Where no launcher loads seccomp's rules, Python does, and then begins anew with the script. 22 and
# 2 are PR_SET_SECCOMP and SECCOMP_MODE_FILTER of prctl(2), whose argument is struct sock_fprog.
_FILTERED = """
import ctypes, os, sys
class Rules(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
rules = open("/rules", "rb").read()
if ctypes.CDLL(None).prctl(22, ctypes.c_ulong(2), ctypes.byref(Rules(len(rules) // 8, rules))):
    sys.exit("no seccomp")
os.closerange(3, 2**31 - 1)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def seccomp():
    """A filter against namespaces of a program's own, in which it would have privileges."""
    import pyseccomp

    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    denied = pyseccomp.ERRNO(errno.EPERM)
    for name in ("unshare", "setns", "ptrace", "process_vm_readv", "process_vm_writev", "bpf"):
        rules.add_rule(denied, name)
    mask = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _NEW_USERS, _NEW_USERS)
    rules.add_rule(denied, "clone", mask)
    rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")  # flags in memory; libc has clone
    return rules


def bubblewrap(limits: Any, code: int, rules: int) -> list[str]:
    """Debian's bubblewrap around the shell."""
    root = os.geteuid() == 0
    capabilities = ["SYS_ADMIN", "SETPCAP", *["SETUID", "SETGID"] * root]  # gone before Python
    parents = {str(p): None for f in _folders() for p in reversed(Path(f).parents[:-1])}
    spaces = ("ipc", "pid", "net", "uts", "cgroup-try", *["user"] * (not root))
    devices = [f"/dev/{name}" for name in DEVICES]
    return [
        *(_found("bwrap"), "--die-with-parent", "--new-session", "--clearenv", "--as-pid-1"),
        *(f"--unshare-{name}" for name in spaces),
        *(a for c in capabilities for a in ("--cap-add", f"CAP_{c}")),
        *(a for p in [*parents, "/box", "/dev"] for a in ("--perms", "0755", "--dir", p)),
        *(a for folder in _folders() for a in ("--ro-bind", folder, folder)),
        *(a for name in LINKS for a in ("--symlink", f"usr/{name}", f"/{name}")),
        *(a for device in devices for a in ("--dev-bind", device, device)),
        *("--perms", "0644", "--ro-bind-data", str(code), SCRIPT, "--remount-ro", "/"),
        *("--seccomp", str(rules), "/bin/sh", "-c", _limited(limits)),
    ]


def unshare(limits: Any, code: int, rules: int) -> list[str]:
    """util-linux's unshare, mount and pivot_root: the same without bubblewrap."""
    folders = [*_folders(), "/box", "/dev", "/old"]
    steps = (
        "umask 022",
        f"mount -t tmpfs -o mode=755 none {_ROOT}",
        f"cd {_ROOT}",
        "mkdir -p " + " ".join(map(_below, folders)),
        *(f"mount -o bind,ro {shlex.quote(folder)} {_below(folder)}" for folder in _folders()),
        "ln -s " + " ".join(f"usr/{name}" for name in LINKS) + " old/proc .",  # proc: for umount
        *(f">dev/{name} && mount --bind /dev/{name} dev/{name}" for name in DEVICES),
        f"cat /proc/self/fd/{code} >.{SCRIPT}",
        f"cat /proc/self/fd/{rules} >rules",
        "mount -o remount,bind,ro .",
        "pivot_root . old",
        "cd /",
        "umount -l old",
        _limited(limits, shlex.join(["-I", "-S", "-c", _FILTERED])),
    )
    spaces = ("mount", "ipc", "pid", "net", "uts", "cgroup")
    return [
        *(_found("setpriv"), "--pdeathsig=KILL", "unshare", "--kill-child"),
        *(f"--{name}" for name in spaces),
        *["--map-root-user"] * (os.geteuid() != 0),
        *("setsid", "/bin/sh", "-c", " && ".join(steps)),
    ]


LAUNCHERS: dict[str, Launcher] = {"bubblewrap": bubblewrap, "unshare": unshare}


def _found(name: str) -> str:
    return shutil.which(name) or name


def _folders() -> list[str]:
    python = Path(sys.base_prefix)
    within = python.is_relative_to("/usr/lib") or str(python) == "/usr"
    return [folder for folder in SYSTEM if Path(folder).is_dir()] + [str(python)] * (not within)


def _below(path: str) -> str:
    return shlex.quote(f".{path}")


def _limited(limits: Any, before: str = "") -> str:
    """The shell's part: mount the empty folder, set the limits, drop all privileges, be Python.

    The shell stays, to be the first process, for which the kernel has signals of its own.
    """
    user = random.SystemRandom().choice(_USERS)
    size = max(limits.output, limits.file_size) // 512 + 1  # the shell counts blocks
    options = f"size={limits.disk},nr_inodes={limits.files},mode=1777,nosuid,nodev"
    to_user = f"--reuid={user} --regid={user} --clear-groups " if os.geteuid() == 0 else ""
    python = shlex.quote(os.path.realpath(sys.executable))
    steps = (
        f"ulimit -t {limits.cpu_s}",
        f"ulimit -v {limits.memory // 1024}",
        f"ulimit -p {limits.processes}",
        f"ulimit -f {size}",
        "ulimit -n 64",
        "ulimit -c 0",
        f"exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all {to_user}-- "
        + f"{python} {before} -I -S -B -X utf8 {SCRIPT}",
    )
    return f"mount -t tmpfs -o {options} none /box && cd /box && ({' && '.join(steps)}); exit $?"
