"""The code reward: right and wrong programs, and an attack suite against the sandbox."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from grpo_jax.rewards import code, launchers, sandbox
from grpo_jax.rewards.code import Case, Limits, judge
from grpo_jax.rewards.launchers import LAUNCHERS
from grpo_jax.rewards.sandbox import check, run

QUICK = Limits(cpu_s=1, wall_s=2.0, memory=128 * 2**20, disk=2**20, files=32)
SECRET = "a52b1c9e"  # what no program is told
SCRIPT = f"/script{os.getpid()}.py"  # to tell this module's programs from those of other runs


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


def passes(program, *cases, limits=QUICK):
    return judge(textwrap.dedent(program), cases, limits)


def said(program, limits=QUICK):
    """What a program printed."""
    return run(textwrap.dedent(program), b"", limits).output.decode()


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


def test_programs_that_read_and_print():
    double = "print(int(input()) * 2)"
    verdict = passes(double, Case(stdin="4\n", stdout="8  \n\n"), Case(stdin="5", stdout="11"))
    assert verdict == ([True, False], "case 2: printed '10\\n'")


@pytest.mark.parametrize(
    ("returned", "expected", "same"),
    [
        ("a + [1]", [1, 2, 1], True),
        ("(1, 2)", [1, 2], True),
        ("0.1 + 0.2", 0.3, True),
        ("2.0", 2, True),
        ("True", 1, False),
        ("1", True, False),
        ("'1'", 1, False),
        ("None", None, True),
        ("{'a': [None, True]}", {"a": [None, True]}, True),
        ("{'a': 1, 'b': 2}", {"a": 1}, False),
        ("float('nan')", float("nan"), False),
        ("10 ** 400", 1.5, False),
        ("10 ** 5000", 1, False),
        ("{1, 2}", [1, 2], False),
    ],
)
def test_programs_that_return(returned, expected, same):
    case = Case(call="f", args=[[1, 2]], expected=expected)
    assert passes(f"def f(a):\n    return {returned}", case).passed == [same]


def test_methods_and_prints_on_the_side():
    program = """
        print("hello")
        class Solution:
            def __init__(self): self.n = 0
            def add(self, a, b):
                print("adding")
                self.n += 1
                return a + b + self.n
    """
    case = Case(call="Solution.add", args=[1, 2], expected=4)
    assert passes(program, case, case).passed == [True, True]  # each case has its own process


def test_a_case_must_be_of_one_kind():
    for fields in ({}, {"stdin": "1"}, {"stdout": "1", "call": "f"}, {"call": "f", "stdin": "1"}):
        with pytest.raises(ValueError, match="valid: stdin and stdout, or call"):
            Case(**fields)
    with pytest.raises(ValueError, match=r"Limits.cpu_s=0 must be above 0"):
        Limits(cpu_s=0)


def test_the_reward_reads_the_last_block_and_abstains():
    good, bad = "```python\nprint(3)\n```", "```\nprint(4)\n```"
    texts = [
        f"First {bad} then {good}",
        f"{good}{bad}",
        f"<answer>{good}</answer>",
        "print(3)",
        good,
    ]
    column = [[{"stdout": "3"}], '[{"stdout": "3"}]', [{"stdout": "3"}], [{"stdout": "3"}], None]
    assert code.code([""] * 5, texts, column) == [1.0, 0.0, 1.0, 1.0, None]
    for broken in ("[", [], [{"stdout": "3", "x": 1}], [{}]):
        with pytest.raises(ValueError, match="column cases"):
            code.code([""], [good], [broken])


ATTACKS = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "thread bomb": """
        import threading, time
        while True: threading.Thread(target=time.sleep, args=(9,)).start()
    """,
    "memory bomb": "x = []\nwhile True: x.append(bytearray(10**7))",
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


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_earn_nothing_and_leave_nothing(name):
    began, short = time.monotonic(), replace(QUICK, wall_s=0.5)
    assert passes(ATTACKS[name], Case(stdin="", stdout=SECRET), limits=short).passed == [False]
    called = textwrap.dedent(ATTACKS[name]) + "\ndef f(): return 1"
    assert passes(called, Case(call="f", expected=SECRET), limits=short).passed == [False]
    assert time.monotonic() - began < 2 * short.wall_s + 4
    assert not left_behind()


FORGERIES = {
    "equal to all": "class A:\n    def __eq__(self, other): return True\ndef f(): return A()",
    "a dishonest json": "import json\njson.dumps = lambda *a, **k: 'true'\ndef f(): return 0",
    "builtins": """
        import builtins
        builtins.isinstance = builtins.all = lambda *a: True
        def f(): return 0
    """,
    "its caller's memory": """
        import gc, sys
        def f():
            frame, seen = sys._getframe(), []
            while frame:
                seen.append(repr(frame.f_locals) + repr(frame.f_globals))
                frame = frame.f_back
            return " ".join(seen) + repr(gc.get_objects())[:10**5]
    """,
    "a pickle": "import pickle, os\ndef f(): return list(pickle.dumps(os.system))",
    "two answers": """
        import os
        os.write(3, b"1"), os.write(4, b"1")
        def f(): return 1
    """,
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_do_not_make_a_wrong_answer_right(name):
    verdict = passes(FORGERIES[name], Case(call="f", expected=[SECRET]))
    assert verdict.passed == [False] and SECRET not in verdict.reason


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
    printed = said("""
        import os
        def written(path, size):
            try:
                with open(path, "wb") as file:
                    for _ in range(size // 4096): file.write(b"x" * 4096); file.flush()
            except OSError: pass
            try: return os.path.getsize(path)
            except OSError: return 0
        print(sum(written(f"/box/{i}", 2**20) for i in range(4)))
        for i in range(4):
            if os.path.exists(f"/box/{i}"): os.remove(f"/box/{i}")
        for i in range(99): written(f"/box/{i}", 0)
        print(len(os.listdir("/box")))
        print(sum(written(f"{d}/x", 4096) for d in ("", "/dev", "/tmp", "/usr/bin", "/usr/lib")))
    """)
    total, files, elsewhere = map(int, printed.split())
    assert 0 < total <= QUICK.disk and 0 < files < QUICK.files and elsewhere == 0


def test_no_privileges_and_no_way_to_any():
    printed = said("""
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        held = (ctypes.c_uint32 * 6)()                       # effective, permitted, inheritable
        print(libc.capget((ctypes.c_uint32 * 2)(0x20080522, 0), held), any(held))
        print(libc.unshare(0x10000000))                      # a user namespace
        print(libc.mount(b"none", b"/box", b"tmpfs", 0, None))
        print(libc.ptrace(16, 1, None, None))                # attach to the sandbox's own init
        print(libc.chroot(b"/box"))
    """)
    assert printed.split() == ["0", "False", *["-1"] * 4]


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


def _within(seconds, happens):
    until = time.monotonic() + seconds
    while not (happened := happens()) and time.monotonic() < until:
        time.sleep(0.02)
    return happened


def test_a_case_that_takes_too_long_fails_alone():
    program = "n = int(input())\nwhile n < 1: import time; time.sleep(9)\nprint(n)"
    cases = [Case(stdin=n, stdout=n) for n in ("1", "0", "2")]
    verdict = passes(program, *cases, limits=replace(QUICK, wall_s=1.0))
    assert verdict == ([True, False, True], "case 2: more than 1 s")


def test_the_reward_runs_no_case_after_one_that_fails(monkeypatch):
    asked = []

    def counted(*given):
        asked.append(given)
        return run(*given)

    monkeypatch.setattr(code, "run", counted)
    cases = [{"stdout": "3"}, {"stdout": "4"}, {"stdout": "3"}]
    assert code.code([""], ["print(3)"], [cases]) == [0.0] and len(asked) == 2


def test_without_a_sandbox_it_says_what_to_install(monkeypatch):
    broken = {"one": lambda *a: [os.devnull], "two": lambda *a: ["false"]}
    monkeypatch.setattr(sandbox, "LAUNCHERS", broken)
    check.cache_clear()
    said = r"none here: one: .*Permission denied.*; two: status 1; .*apt install bubblewrap"
    with pytest.raises(ValueError, match=said):
        judge("print(1)", [Case(stdout="1")])
    check.cache_clear()
