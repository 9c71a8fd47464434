"""The code reward: right and wrong programs, and cases that are none."""

import ast
import json
import os
from dataclasses import replace

import pytest
from sandboxes import LONG, SECRET, at_once, passes

from grpo_jax.rewards import code, sandbox
from grpo_jax.rewards.call import Group, RewardError, call_reward
from grpo_jax.rewards.code import Case, judge, same
from grpo_jax.rewards.sandbox import check, run


@pytest.fixture(scope="module", autouse=True)
def a_sandbox():
    """The first that can be had: test_sandbox tries each."""
    try:
        check()
    except ValueError as error:
        pytest.skip(str(error))


def test_programs_that_read_and_print():
    double = "print(int(input()) * 2)"
    verdict = passes(double, Case(stdin="4\n", stdout="8  \n\n"), Case(stdin="5", stdout="11"))
    assert verdict == ([True, False], "case 2: printed '10\\n'")


def test_programs_that_return():
    returned = "[a + [1], (1, 2), 0.1 + 0.2, 2.0, None, {'a': [None, True]}, 10 ** 400, True]"
    expected = [[1, 2, 1], [1, 2], 0.3, 2, None, {"a": [None, True]}, 10**400, True]
    case = Case(call="f", args=[[1, 2]], expected=expected)
    assert passes(f"def f(a):\n    return {returned}", case).passed == [True]
    for nothing in ("{1, 2}", "10 ** 5000", "iter([1, 2])", "object()"):
        wrong = passes(f"def f():\n    return {nothing}", Case(call="f", expected=[1, 2]))
        assert wrong == ([False], wrong.reason), nothing


def test_values_that_json_tells_apart():
    for a, b in (
        *((True, 1), (1, True), ("1", 1), (None, 0), (10**400, 1.5), ([1], [1, 1])),
        *(({"a": 1, "b": 2}, {"a": 1}), (float("nan"), float("nan")), ([], {}), (0.1, 0.11)),
    ):
        assert not same(a, b) and not same(b, a)


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


# Programs that end themselves, and whether what they have printed or defined by then counts.
ENDINGS = {
    "print(3)\nexit()": True,
    "print(3)\nexit(0)": True,
    "def main():\n    print(3)\n    quit()\nif __name__ == '__main__':\n    main()": True,
    "import sys\nprint(3)\nsys.exit()": True,
    "print(3)\nraise SystemExit": True,
    "import os\nprint(3, flush=True)\nos._exit(0)": True,
    "print(3)\nexit(1)": False,  # as any judge of programs has it
    "print(3)\nexit('done')": False,
    "print(3)\n1 / 0": False,
    "exit()\nprint(3)": False,
}
LOADED = {
    "def f(): return 3\nexit()": True,
    "def f(): return 3\nraise SystemExit(1)": True,
    "import os, sys\nif os.fork() == 0: sys.exit(0)\nos.wait()\ndef f(): return 3": True,
    "import os\ndef f():\n    os.fork()\n    return 3": True,
    "def f(): return 3\nif __name__ == '__main__':\n    f = input()": True,
    "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\n"
    "class A:\n    x: int\ndef f(): return A(3).x": True,
    "from multiprocessing import Pool\ndef g(x): return x + 1\ndef f():\n"
    "    with Pool() as pool: return sum(pool.map(g, [0, 1]))": True,
    "exit()\ndef f(): return 3": False,
    "def f(): exit()": False,
    "import os\ndef f(): os._exit(0)": False,
}


def test_programs_may_end_themselves():
    for programs, case in ((ENDINGS, Case(stdout="3")), (LOADED, Case(call="f", expected=3))):
        found = at_once(lambda program, case=case: passes(program, case).passed[0], programs)
        assert dict(zip(programs, found, strict=True)) == programs


# What LeetCode imports for every program, each name used without import.
LEETCODE = """
class Solution:
    def f(self, nums: List[int], k: Optional[int] = None) -> Dict[str, Union[int, Any]]:
        seen: DefaultDict[int, Set[Tuple[int, ...]]] = defaultdict(set)
        heap = nums[:]
        heapify(heap)
        heapq.heappush(heap, 0)

        @cache
        def g(n):
            return n if n < 2 else g(n - 1) + g(n - 2)

        return [
            Counter(nums)[1], deque(nums)[0], heappop(heap), g(9), gcd(4, 6), math.floor(1.5),
            bisect_left(nums, 2), bisect.bisect(nums, 2), inf > 1, list(accumulate(nums)),
            list(itertools.chain(nums)), reduce(lambda a, b: a + b, nums), ascii_lowercase[:2],
            string.digits[:2], re.sub("a", "b", "a"), len(random.sample(nums, 2)), maxsize > 1,
            OrderedDict(a=1)["a"], itemgetter(0)(nums), mean([1, 3]), datetime.date(2000, 1, 1).day,
            json.loads("1"), functools.partial(max, 1)(2), sqrt(4), copy.copy(nums),
        ]
"""
RETURNED = "2 1 0 34 2 1 2 3 True [1,2,4] [1,1,2] 4 'ab' '01' 'b' 2 True 1 1 2 1 1 2 2.0 [1,1,2]"


def test_leetcodes_names_need_no_import():
    expected = [ast.literal_eval(value) for value in RETURNED.split()]
    case = Case(call="Solution.f", args=[[1, 1, 2]], expected=expected)
    own = "def gcd(a, b): return 7\ncount = 5\nprint(gcd(4, 6), count, sqrt(9))"
    assert passes(LEETCODE, case) == ([True], "")
    assert passes(own, Case(stdout="7 5 3.0")) == ([True], "")
    assert passes("print(undefined)", Case(stdout="")).passed == [False]


NO_CASES = {
    "[": "is no JSON",
    "[]": "at least one case",
    "{}": "at least one case",
    "3": "at least one case",
    "[3]": "case 1: 3; valid: an object with stdin, stdout, call, args, expected",
    '[{"stdout": "3", "x": 1}]': "case 1: unknown field 'x'; valid: stdin, stdout",
    "[{}]": "case 1: it holds nothing; valid: stdin and stdout, or call, args and expected",
    '[{"stdin": "1"}]': "case 1: it holds stdin; valid: stdin and stdout, or call",
    '[{"stdout": "1", "call": "f"}]': "case 1: it holds stdout, call; valid: stdin and stdout",
    '[{"call": "f", "stdin": "1"}]': "case 1: call='f' beside stdin; valid: stdin and stdout",
    '[{"stdout": "3"}, {"stdout": 5}]': "case 2: stdout=5; valid: text",
    '[{"stdout": "3", "stdin": ["1"]}]': "case 1: stdin=['1']; valid: text",
    '[{"stdout": "\\ud800"}]': "case 1: stdout holds half of a surrogate pair; valid: text",
    '[{"stdout": "3", "args": [1]}]': "case 1: stdout beside args or expected; valid",
    '[{"stdout": "3", "expected": 3}]': "case 1: stdout beside args or expected; valid",
    '[{"call": "f", "args": [1]}]': "case 1: call='f' without expected; valid: stdin and stdout",
    '[{"call": "f", "args": null, "expected": 1}]': "case 1: args=None; valid: a list, [] for no",
    '[{"call": "f", "args": "ab", "expected": 1}]': "case 1: args='ab'; valid: a list",
    '[{"call": "f", "args": {"x": 1}, "expected": 1}]': "case 1: args={'x': 1}; valid: a list",
    '[{"call": "f(1)", "expected": 1}]': "case 1: call='f(1)'; valid: a function's name",
    '[{"call": 5, "expected": 1}]': "case 1: call=5; valid: text",
    '[{"call": "", "expected": 1}]': "case 1: call=''; valid: a function's name",
}


def test_a_record_whose_cases_are_none_is_named():
    for given, said in NO_CASES.items():
        for cases in (given, *([json.loads(given)] if said != "is no JSON" else [])):
            with pytest.raises(ValueError) as raised:
                code.code(["right", "Double it"], ["", ""], [None, cases])
            message = str(raised.value)
            assert said in message and "prompt: 'Double it'" in message and "\n" not in message
    with pytest.raises(ValueError, match=r"case 1: expected: .*set is not JSON.*; valid: what"):
        code.code([""], [""], [[{"call": "f", "expected": {1}}]])
    with pytest.raises(RewardError, match=r"reward 'code' .*case 1: stdout=5; valid: text; prompt"):
        call_reward("code", code.code, Group("Double it", [""], {"cases": [{"stdout": 5}]}))


def test_a_table_whose_records_are_of_both_kinds_is_read():
    empty = dict.fromkeys(("stdin", "stdout", "call", "args", "expected"))
    printed = [empty | {"stdin": "4", "stdout": "8"}]
    called = [empty | {"call": "f", "args": []}]  # expects None
    programs = ["print(int(input()) * 2)", "def f(): pass"]
    assert code.code(["", ""], programs, [printed, called]) == [1.0, 1.0]


def test_the_reward_reads_the_program_and_abstains():
    good, bad = "```python\nprint(3)\n```", "```\nprint(4)\n```"
    texts = [f"{bad} then {good}", f"{good}\n```python\nprint(4)\n```", "print(3)", good]
    column = [[{"stdout": "3"}], '[{"stdout": "3"}]', ({"stdout": "3"},), None]
    assert code.code([""] * 4, texts, column) == [1.0, 0.0, 1.0, None]


# Programs in pieces, each of which is a block of its own.
PIECES = {
    (
        "def g(x):\n    return h(x)",
        "def h(x):\n    return x + 1",
        "def f(x):\n    return g(x)",
    ): True,
    (
        "import numpy as bisect",
        "def f(x):\n    return count(x)",
        "def count(x): return x + 1",
    ): True,
    ("from math import sqrt as root", "def f(x): return 1 + root(x) ** 2"): True,
    ("def f(x):\n    return x + 1", "f = 5\n1 / 0", "def f(x):\n    return x + 1"): True,
    ("def f(x): return x + 1", "not Python:", "print(f(2))"): True,
    ("def g(x): return x", "def f(x): return g(x)", "def g(x): return x + 1"): True,
    ("def g(x): return x + 1", "def f(x): return g(x)", "def g(x): return x"): False,
    ("def f(x): return y", "z = 3"): False,
}


def test_what_a_program_lacks_comes_from_other_blocks():
    def judged(pieces):
        text = "\n".join(f"```python\n{piece}\n```" for piece in pieces)
        return code.code([""], [text], [[{"call": "f", "args": [2], "expected": 3}]])

    found = at_once(judged, PIECES)
    assert dict(zip(PIECES, found, strict=True)) == {k: [float(v)] for k, v in PIECES.items()}
    text = "```python\ndef f(n): return 2 * n\n```\n```py\nprint(f(int(input())))\n```"
    assert code.code([""], [text], [[{"stdin": "2", "stdout": "4"}]]) == [1.0]


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


def test_forgeries_do_not_make_a_wrong_answer_right():
    def judged(name):
        return passes(FORGERIES[name], Case(call="f", expected=[SECRET]))

    for verdict in at_once(judged, FORGERIES):
        assert verdict.passed == [False] and SECRET not in verdict.reason


def test_a_case_that_takes_too_long_fails_alone():
    program = "n = int(input())\nwhile n < 1: import time; time.sleep(9)\nprint(n)"
    cases = [Case(stdin=n, stdout=n) for n in ("1", "0", "2")]
    verdict = passes(program, *cases, limits=replace(LONG, wall_s=1.0))
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
