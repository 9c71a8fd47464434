"""Programs as answers: run on test cases in a sandbox, and judged outside of it.

A program is given what a case asks and never what it expects. What it says comes back as bytes,
is read as plain data and compared here, so that nothing it does inside can make a wrong answer
right: exit codes and prints prove nothing.
"""

import json
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from grpo_jax.rewards.sandbox import Limits, check, run
from grpo_jax.rewards.text import Completion, completion_text, extract_answer
from grpo_jax.rewards.turn import of_turn

__all__ = ["Case", "Limits", "Verdict", "code", "judge"]

_AT_ONCE = min(8, os.cpu_count() or 1)  # programs that one call runs
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)

# Calls a function of a program. The program's own prints go nowhere.
_CALLER = """
import json, os, sys
task = json.loads(sys.stdin.buffer.read())
channel = open(os.dup(1), "wb")
for fd in (0, 1, 2):
    os.dup2(os.open(os.devnull, os.O_RDWR), fd)
found = {"__name__": "program"}
exec(compile(task["program"], "program.py", "exec"), found)
first, *rest = task["call"].split(".")
function = found[first]
for name in rest:
    function = getattr(function() if isinstance(function, type) else function, name)
channel.write(json.dumps(function(*task["args"])).encode())
channel.flush()
os._exit(0)
"""


@dataclass(frozen=True)
class Case:
    """One test of a program, either of two kinds.

    stdin, stdout         what it reads, and must print (spaces at the ends of lines apart)
    call, args, expected  a function ("f", or "Solution.f" of a class made without arguments), its
                          arguments and the value it must return, all as JSON has them
    """

    stdin: str | None = None
    stdout: str | None = None
    call: str | None = None
    args: Sequence[Any] = ()
    expected: Any = None

    def __post_init__(self):
        if (self.stdout is None) == (self.call is None) or (self.call and self.stdin is not None):
            raise ValueError(f"{self}: valid: stdin and stdout, or call, args and expected")


class Verdict(NamedTuple):
    """passed, one bool a case, and why the first that failed did: '' where none has."""

    passed: list[bool]
    reason: str


def judge(program: str, cases: Sequence[Case], limits: Limits = Limits()) -> Verdict:  # noqa: B008
    """Run a Python program on every case, each in a sandbox of its own with `limits`.

    ValueError where there is no sandbox, with what to install.
    """
    check()
    found = [_failure(program, case, limits) for case in cases]
    reasons = (f"case {number}: {why}" for number, why in enumerate(found, 1) if why)
    return Verdict([not why for why in found], next(reasons, ""))


def _failure(program: str, case: Case, limits: Limits) -> str:
    """Why a program fails a case, '' where it passes."""
    done = run(*_asked(program, case), limits)
    return done.reason or _wrong(case, done.output)


@of_turn
def code(
    prompts: Sequence[Any], completions: Sequence[Completion], cases: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1.0 where a completion's program passes every case of the column `cases`, else 0.0.

    The program is the last block fenced by ```, of what <answer>…</answer> holds or else of the
    whole completion, or where there is no fence the whole. The first case that fails is the last
    to be run. A record's `cases` is a list of Case's fields, or such a list as JSON. Abstains
    (None) where the column holds None.
    """
    pairs = zip(completions, cases, strict=True)
    with ThreadPoolExecutor(_AT_ONCE) as threads:  # which wait for the sandboxes
        return list(threads.map(lambda pair: _all_pass(*pair), pairs))


def _all_pass(completion: Completion, given: Any) -> float | None:
    if given is None:
        return None
    program = extract_code(completion)
    return float(not any(_failure(program, case, Limits()) for case in _cases(given)))


def extract_code(completion: Completion) -> str:
    """The program in a completion."""
    for text in (extract_answer(completion), completion_text(completion)):
        if blocks := _BLOCK.findall(text):
            return blocks[-1]
    return extract_answer(completion)


def _cases(given: Any) -> list[Case]:
    try:
        records = json.loads(given) if isinstance(given, str) else given
        cases = [Case(**record) for record in records]
    except (TypeError, ValueError) as error:
        raise ValueError(f"column cases: {error}") from error
    if not cases:
        raise ValueError("column cases is empty; valid: at least one case")
    return cases


def _asked(program: str, case: Case) -> tuple[str, bytes]:
    """The script to run for a case, and its standard input."""
    if case.call is None:
        return program, (case.stdin or "").encode()
    task = {"program": program, "call": case.call, "args": list(case.args)}
    return _CALLER, json.dumps(task).encode()


def _wrong(case: Case, output: bytes) -> str:
    """What is wrong with the output of a run that ended by itself, or ''."""
    text = output.decode(errors="replace")
    if case.call is None:
        return "" if _lines(text) == _lines(case.stdout or "") else f"printed {text[:80]!r}"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "returned nothing that JSON has"
    return "" if same(value, case.expected) else f"returned {text[:80]}"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are one: floats to 1e-6; true is no number, NaN equals nothing."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        if a == b or (isinstance(a, int) and isinstance(b, int)):
            return a == b
        try:
            return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
        except OverflowError:  # an integer beyond floats
            return False
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b
