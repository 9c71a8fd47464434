"""An attack suite against the sandbox. test_sandbox_user runs it as an ordinary user, too."""

import ctypes
import errno
import json
import platform
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import pytest
from sandboxes import LONG, QUICK, SCRIPT, SECRET, at_once, launcher, left_behind, passes, said

from grpo_jax.rewards import launchers, memory
from grpo_jax.rewards.code import Case

__all__ = ["launcher"]

ATTACKS = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "thread bomb": """
        import threading, time
        while True: threading.Thread(target=time.sleep, args=(9,)).start()
    """,
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "endless output": "while True: print('x' * 1000)",
    "silence": "import time\ntime.sleep(99)",
    "deaf to signals": """
        import signal
        for s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(s, signal.SIG_IGN)
        while True: pass
    """,
    "early exit": "import os\nos._exit(0)",
    "polite exit": "raise SystemExit(0)",
    "killing everyone": "import os\nos.kill(os.getppid(), 9)\nos.kill(1, 9)\nos.kill(-1, 9)",
    "a word on every descriptor": """
        import os
        for fd in range(64):
            try: os.write(fd, b"true")
            except OSError: pass
    """,
}


def test_attacks_earn_nothing_and_leave_nothing():
    began, short = time.monotonic(), replace(QUICK, wall_s=0.5)
    cases = [(name, Case(stdin="", stdout=SECRET)) for name in ATTACKS]
    cases += [(name, Case(call="f", expected=SECRET)) for name in list(ATTACKS)[-4:]]
    found = at_once(lambda case: passes(ATTACKS[case[0]], case[1], limits=short).passed, cases)
    assert not any(passed for (passed,) in found)
    assert time.monotonic() - began < len(cases) * (2 * short.wall_s + 4)
    assert not left_behind()


# Numbers on x86-64 and aarch64, and arguments with which most would do something.
FORBIDDEN = {
    "add_key": (248, 217, b"user", b"left", b"x", 1, -3),
    "request_key": (249, 218, b"user", SECRET.encode(), 0, 0),
    "keyctl clear": (250, 219, 7, -3),
    "keyctl read": (250, 219, 11, -3, 0, 0),
    "shmget": (29, 194, 0, 4096, 0o1600),
    "shmat": (30, 196, 0, 0, 0),
    "semget": (64, 190, 0, 1, 0o1600),
    "msgget": (68, 186, 0, 0o1600),
    "mq_open": (240, 180, b"x", 0o102, 0o600, 0),
    "io_uring_setup": (425, 425, 8, bytes(120)),
    "userfaultfd": (323, 282, 1),
    "perf_event_open": (298, 241, bytes(128), 0, -1, -1, 0),
    "bpf": (321, 280, 0, bytes(128), 72),
    "memfd_create": (319, 279, b"x", 0),
    "ptrace": (101, 117, 16, 1, 0, 0),
    "process_vm_readv": (310, 270, 1, 0, 0, 0, 0, 0),
    "pidfd_getfd": (438, 438, 3, 0, 0),
    "unshare": (272, 97, 0x10000000),
    "clone": (56, 220, 0x10000011, 0, 0, 0, 0),
    "clone3": (435, 435, bytes(88), 88),
    "setns": (308, 268, 0, 0),
    "mount": (165, 40, b"none", b"/box", b"tmpfs", 0, 0),
    "open_tree": (428, 428, -100, b"/", 1),
    "chroot": (161, 51, b"/box"),
    "vmsplice": (278, 75, 1, 0, 0, 0),
    "inotify_init1": (294, 26, 0),
    "personality": (135, 92, 0),
    "a large pipe": (72, 25, 1, 1031, 2**20),
    "a large pipe, in 64 bits": (72, 25, 1, 2**32 + 1031, 2**20),
    "AF_INET, in 64 bits": (41, 198, 2**32 + 2, 1, 0),
    "prctl dumpable": (157, 167, 4, 0, 0, 0, 0),
}
PROBE = """
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    def failed(numbers, *arguments):
        ctypes.set_errno(0)
        words = [a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
        libc.syscall(ctypes.c_long(numbers), *words)
        return ctypes.get_errno()
"""


def test_system_calls_beyond_pythons_own_do_not_exist():
    column = ["x86_64", "aarch64"].index(platform.machine())
    calls = {name: (call[column], *call[2:]) for name, call in FORBIDDEN.items()}
    printed = said(
        PROBE
        + f"""
    import json, socket
    found = {{name: failed(*call) for name, call in {calls!r}.items()}}
    families = set()
    for family in range(64):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            try: socket.socket(family, kind).close(); families.add(family)
            except OSError: pass
    ends = socket.socketpair()
    try: ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**22)
    except OSError as error: found["a large buffer"] = error.errno
    print(json.dumps([found, list(families)]))
    """
    )
    found, families = json.loads(printed)
    assert {name: errno.errorcode[e] for name, e in found.items() if e != errno.ENOSYS} == {}
    assert len(found) == len(FORBIDDEN) + 1 and families == [socket.AF_UNIX]


def test_the_keyring_of_the_judge_is_out_of_reach():
    libc, column = (
        ctypes.CDLL(None, use_errno=True),
        ["x86_64", "aarch64"].index(platform.machine()),
    )
    add, ask = (FORBIDDEN[name][column] for name in ("add_key", "keyctl read"))
    key = libc.syscall(add, b"user", SECRET.encode(), b"held", 4, -5)  # the user's session keyring
    if key < 0:
        pytest.skip("this machine lets nobody keep keys")
    said(
        PROBE
        + f"""
    for ring in (-3, -4, -5, {key}):
        for what in (3, 7, 21): failed({ask}, what, ring, 0)  # revoke, clear, invalidate
        failed({add}, b"user", b"left", b"x", 1, ring)
    """
    )
    content = ctypes.create_string_buffer(8)
    assert libc.syscall(ask, 11, key, content, 8) == 4 and content.value == b"held"
    assert libc.syscall(ask, 10, -5, b"user", b"left", 0) == -1  # nothing found


@pytest.mark.skipif(platform.machine() != "x86_64", reason="of x86-64, which has others' numbers")
def test_system_calls_by_the_numbers_of_another_architecture_kill():
    printed = said("""
        import ctypes, mmap, os
        def x32(): ctypes.CDLL(None).syscall(0x40000000 + 39)  # getpid
        def i386():
            code = mmap.mmap(-1, 4096, prot=7)
            code.write(bytes.fromhex("b814000000 cd80 c3"))  # getpid; return
            at = ctypes.addressof(ctypes.c_char.from_buffer(code))
            ctypes.CFUNCTYPE(ctypes.c_int)(at)()
        for call in (lambda: None, x32, i386):
            if (pid := os.fork()) == 0:
                call()
                os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """)
    assert printed.split() == ["0", "-31", "-31"]  # SIGSYS


def test_there_is_no_network():
    served = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(4)
        thread = threading.Thread(target=lambda: served.append(_accepted(server)))
        thread.start()
        address = server.getsockname()
        printed = said(f"""
            import socket
            for host in ("127.0.0.1", "8.8.8.8"):
                try: socket.create_connection((host, {address[1]}), 1); print("connected")
                except OSError as error: print("refused")
        """)
        socket.create_connection(address).close()  # the server itself works
        thread.join()
    assert printed.split() == ["refused", "refused"] and served == [1]


def _accepted(server):
    server.accept()
    return 1


def test_host_files_and_environment_are_out_of_sight(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", SECRET)
    (tmp_path / "secret").write_text(SECRET)
    places = ["/etc/passwd", "/etc/shadow", "/proc/self/environ", str(tmp_path), __file__, "/tmp"]
    seen = json.loads(
        said(f"""
        import json, os
        def opens(path):
            try: return os.listdir(path) if os.path.isdir(path) else open(path).read()
            except OSError: return None
        print(json.dumps([dict(os.environ), list(map(opens, {places})), os.listdir(".")]))
    """)
    )
    environment, found, here = seen
    assert found == [None] * len(places) and here == []
    assert environment.keys() <= {"PWD", "OLDPWD", "LC_CTYPE", "_"}
    assert SECRET not in json.dumps(seen)


def test_writing_is_limited_in_place_bytes_and_files():
    printed = said(
        """
        import os
        def written(path, size):
            try:
                with open(path, "wb") as file:
                    for _ in range(size // 4096): file.write(b"x" * 4096); file.flush()
            except OSError: pass
            try: return os.path.getsize(path)
            except OSError: return 0
        print(sum(written(f"{d}/{i}", 2**20) for i in range(4) for d in ("/box", "/dev/shm")))
        for i in range(4):
            if os.path.exists(f"/box/{i}"): os.remove(f"/box/{i}")
        for i in range(99): written(f"/box/{i}", 0)
        print(len(os.listdir("/box")))
        print(sum(written(f"{d}/x", 4096) for d in ("", "/dev", "/tmp", "/usr/bin", "/usr/lib")))
        os.remove("/box/0")
        with open("/box/0", "w") as file: file.write("#!/bin/sh")
        os.chmod("/box/0", 0o755)
        print(os.access("/box/0", os.X_OK))
    """,
        replace(LONG, disk=QUICK.disk, files=QUICK.files),
    )
    total, files, elsewhere, runs = printed.split()
    assert 0 < int(total) <= 2 * QUICK.disk and 0 < int(files) < QUICK.files
    assert (elsewhere, runs) == ("0", "False")


def test_no_privileges_and_no_way_to_any():
    printed = said("""
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        held = (ctypes.c_uint32 * 6)()                       # effective, permitted, inheritable
        print(libc.capget((ctypes.c_uint32 * 2)(0x20080522, 0), held), any(held))
        print(libc.prctl(39, 0, 0, 0, 0))                    # PR_GET_NO_NEW_PRIVS
        print([fd for fd in range(64) if libc.fcntl(fd, 1) >= 0])
    """)
    assert printed.splitlines() == ["0 False", "1", "[0, 1, 2]"]


def test_daemons_end_with_the_program():
    program = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(60)
            os._exit(0)
        print("ok")
    """
    assert passes(program, Case(stdout="ok")).passed == [True]
    assert not left_behind()


def test_programs_end_with_a_killed_trainer(launcher):
    trainer = f"""
        from grpo_jax.rewards import launchers, sandbox
        launchers.SCRIPT = {SCRIPT!r}
        sandbox.LAUNCHERS = {{"one": launchers.LAUNCHERS[{launcher!r}]}}
        sandbox.run("import time; time.sleep(99)", b"", sandbox.Limits(wall_s=99))
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(trainer)]) as process:
        assert _within(20, left_behind)  # it runs
        process.kill()
    assert _within(5, lambda: not left_behind())

    def cgroups_left():
        memory.place.cache_clear()
        place = memory.place()  # removes what the killed one has left, once the kernel lets it
        return place and list(place[0].glob(f"{memory.PREFIX}{process.pid}-*"))

    assert _within(5, lambda: not cgroups_left())


def _within(seconds, happens):
    until = time.monotonic() + seconds
    while not (happened := happens()) and time.monotonic() < until:
        time.sleep(0.02)
    return happened


# What programs do, each line in its own way; the second field is what it prints.
USES = {
    "from multiprocessing import Pool\nwith Pool() as p: print(p.map(abs, [-1, 2]))": "[1, 2]",
    "import multiprocessing as m\nprint(m.get_context('spawn').Pool(2).map(abs, [-1]))": "[1]",
    "import multiprocessing as m\nv = m.Value('i', 2)\nq = m.Queue()\nq.put(v.value)\n"
    "print(q.get())": "2",
    "from concurrent.futures import ThreadPoolExecutor as T\nwith T(24) as t:\n"
    "    print(sum(t.map(abs, range(99))))": "4851",
    "import subprocess, sys\nprint(subprocess.check_output([sys.executable, '-c', 'print(1)']))": (
        "b'1\\n'"
    ),
    "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n"
    "    return await asyncio.to_thread(abs, -3)\nprint(asyncio.run(f()))": "3",
    "import tempfile, shutil, pathlib\nwith tempfile.TemporaryDirectory() as d:\n"
    "    p = pathlib.Path(d, 'a')\n    p.write_text('x')\n    shutil.copytree(d, 'b')\n"
    "print(open(shutil.copy2('b/a', 'c')).read())": "x",
    "import sqlite3\nwith sqlite3.connect('a.db') as c:\n    c.execute('create table t(a)')\n"
    "    print(c.execute('select count(*) from t').fetchall())": "[(0,)]",
    "import socket\na, b = socket.socketpair()\na.send(b'x')\ns = socket.socket(socket.AF_UNIX)\n"
    "s.bind('s')\ns.listen()\nprint(b.recv(1))": "b'x'",
    "import signal, time\nsignal.signal(signal.SIGALRM, lambda *_: print('rings'))\n"
    "signal.setitimer(signal.ITIMER_REAL, 0.01)\ntime.sleep(0.05)": "rings",
    "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**28)\n"
    "def f(n): return n and 1 + f(n - 1)\nt = threading.Thread(target=lambda: print(f(20000)))\n"
    "t.start()\nt.join()": "20000",
    "import random, os, uuid\nrandom.seed(os.urandom(8))\nprint(uuid.uuid4().version)": "4",
}


def test_what_programs_use_works():
    printed = said(f"""
        import contextlib, io, json, traceback
        def printed(use):
            with contextlib.redirect_stdout(io.StringIO()) as text:
                try: exec(use, {{"__name__": "__main__"}})
                except Exception: traceback.print_exc(file=text)
            return text.getvalue()
        if __name__ == "__main__":
            print(json.dumps({{use: printed(use) for use in {list(USES)!r}}}))
    """)
    assert {use: text.strip() for use, text in json.loads(printed).items()} == USES


def test_a_program_sees_few_cores(monkeypatch):
    monkeypatch.setattr(launchers, "CORES", 1)
    assert said("import os\nprint(len(os.sched_getaffinity(0)))") == "1\n"
