"""The command lines that make the sandbox: bubblewrap's, and util-linux's where that is missing.

Both put a shell, the sandbox's first process, into new namespaces with a root of Python's files. It
mounts the empty folder and starts Python with limits and without privileges, which filters its own
system calls before it turns to the script. Started by root, Python runs as a user that nobody else
is.
"""

import os
import random
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SCRIPT = "/script.py"
SYSTEM = ("/usr/bin", "/usr/lib", "/usr/lib64")  # the shell, mount, setpriv, Python's libraries
LINKS = ("bin", "lib", "lib64")
DEVICES = ("null", "urandom")

CORES = 4  # that a sandbox runs on
RESERVED = 16  # times the limit on memory, of addresses: threads reserve what they never use

_USERS = range(2**20, 2**30)  # numbers that no account has
_ROOT = "/sys"  # a folder that is everywhere and from which nothing is needed, to mount on

# What Python does first: load seccomp's rules, then become the script. 22 and 2 are PR_SET_SECCOMP
# and SECCOMP_MODE_FILTER of prctl(2), whose argument is struct sock_fprog. The modules under ctypes
# and os do: those would take a third of the time that a short program takes.
_FILTERED = """
def load():
    global __file__
    import _ctypes, posix, sys
    types = {name: type(name, (_ctypes._SimpleCData,), {"_type_": name}) for name in "HiLz"}
    class Rules(_ctypes.Structure):
        _fields_ = [("len", types["H"]), ("filter", types["z"])]
    class Function(_ctypes.CFuncPtr):
        _flags_, _restype_ = _ctypes.FUNCFLAG_CDECL, types["i"]
    prctl = Function(_ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl"))
    with open("/rules", "rb") as file:
        rules = file.read()
    if prctl(22, types["L"](2), _ctypes.byref(Rules(len(rules) // 8, rules))):
        sys.exit("no seccomp")
    posix.closerange(3, 2**31 - 1)
    del globals()["load"], sys.argv[0]
    __file__ = sys.argv[0]
    with open(__file__, "rb") as file:
        return compile(file.read(), __file__, "exec")
exec(load())
"""


@dataclass(frozen=True)
class Limits:
    """What one run of a program may use: seconds, bytes and counts.

    memory      of the whole sandbox: of all its processes together, with its files and what the
                kernel keeps for it. Without a cgroup to hold it (`memory`), what is used beyond it
                between two looks, 20 ms each, is not prevented; then the sandbox is ended
    processes   with threads; a program that asks for the number of cores sees 4 at most, so that a
                pool of its usual size fits
    """

    cpu_s: int = 2  # of each process
    wall_s: float = 5.0
    memory: int = 256 * 2**20
    processes: int = 32
    output: int = 2**20
    file_size: int = 2**20
    disk: int = 8 * 2**20
    files: int = 64

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"Limits.{name}={value!r} must be above 0")
        if self.disk >= self.memory:
            raise ValueError(
                f"Limits.disk={self.disk} must be below Limits.memory={self.memory}, which holds it"
            )


# Of limits, script and seccomp rules: descriptors.
Launcher = Callable[[Limits, int, int], list[str]]


def bubblewrap(limits: Limits, code: int, rules: int) -> list[str]:
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
        *("--symlink", "/box", "/dev/shm", "--perms", "0644", "--ro-bind-data", str(code), SCRIPT),
        *("--perms", "0644", "--ro-bind-data", str(rules), "/rules", "--remount-ro", "/"),
        *("/bin/sh", "-c", _limited(limits)),
    ]


def unshare(limits: Limits, code: int, rules: int) -> list[str]:
    """util-linux's unshare, mount and pivot_root: the same without bubblewrap."""
    folders = [*_folders(), "/box", "/dev", "/old"]
    steps = (
        "umask 022",
        f"mount -t tmpfs -o mode=755 none {_ROOT}",
        f"cd {_ROOT}",
        "mkdir -p " + " ".join(map(_below, folders)),
        *(f"mount -o bind,ro {shlex.quote(folder)} {_below(folder)}" for folder in _folders()),
        "ln -s " + " ".join(f"usr/{name}" for name in LINKS) + " old/proc .",  # proc: for umount
        "ln -s /box dev/shm",
        *(f">dev/{name} && mount --bind /dev/{name} dev/{name}" for name in DEVICES),
        f"cat /proc/self/fd/{code} >.{SCRIPT}",
        f"cat /proc/self/fd/{rules} >rules",
        "mount -o remount,bind,ro .",
        "pivot_root . old",
        "cd /",
        "umount -l old",
        _limited(limits),
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


def _limited(limits: Limits) -> str:
    """The shell's commands: mount the empty folder, set limits, drop all privileges, be Python.

    The shell stays, to be the first process, which the kernel signals differently.
    """
    user = random.SystemRandom().choice(_USERS)
    size = max(limits.output, limits.file_size) // 512 + 1  # the shell counts blocks
    options = f"size={limits.disk},nr_inodes={limits.files},mode=1777,nosuid,nodev,noexec"
    to_user = ["--reuid", user, "--regid", user, "--clear-groups"] * (os.geteuid() == 0)
    python = os.path.realpath(sys.executable)
    privileges = ["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", *to_user]
    command = [*privileges, "--", *_few_cores(), python, *["-I", "-S", "-B", "-X", "utf8", "-c"]]
    steps = (
        f"ulimit -t {limits.cpu_s}",
        f"ulimit -v {RESERVED * limits.memory // 1024}",
        f"ulimit -p {limits.processes}",
        f"ulimit -f {size}",
        "ulimit -n 64",
        "ulimit -c 0",
        f"exec {shlex.join(map(str, [*command, _FILTERED, SCRIPT]))}",
    )
    return f"mount -t tmpfs -o {options} none /box && cd /box && ({' && '.join(steps)}); exit $?"


def _few_cores() -> list[str]:
    """The command before Python's that gives it CORES of this process's, where there are more."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) <= CORES:
        return []
    return ["taskset", "-c", ",".join(map(str, random.sample(cores, CORES)))]
