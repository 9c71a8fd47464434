"""Programs as answers: run on test cases in a sandbox, judged outside of it.

A program is given a case's input and never the output that it expects. Its output comes back as
bytes, is read as plain data and compared here, so that nothing it does inside can make a wrong
answer right: exit codes and prints prove nothing.
"""

import builtins
import functools
import importlib
import json
import math
import os
import re
import types
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from grpo_jax.errors import excerpt
from grpo_jax.rewards.cases import Case, parse_cases
from grpo_jax.rewards.fences import Program, extract_code
from grpo_jax.rewards.sandbox import Limits, check, run
from grpo_jax.rewards.text import Completion
from grpo_jax.rewards.turn import Prompt, of_turn

__all__ = ["Case", "Limits", "Verdict", "code", "judge"]

_AT_ONCE = min(8, os.cpu_count() or 1)  # programs that one call runs

# What LeetCode imports for every program: the names of these modules, and the modules. Of a name in
# several the last counts.
LIBRARY = (
    *("typing", "json", "sys", "io", "operator", "functools", "itertools", "statistics", "random"),
    *("math", "copy", "bisect", "heapq", "collections", "datetime", "re", "string"),
)
_WORD = re.compile(r"(?<![\w.])[^\W\d]\w*")

# A program compiled, after it was given exit and quit, which the interpreter has without -S, and
# names that it uses and does not bind: of other texts, compiled to run before it, and of modules.
_COMPILED = """
def compiled(program, others, names):
    import builtins, symtable, sys
    builtins.exit = builtins.quit = sys.exit

    def tables(text):
        found = [symtable.symtable(text, "program.py", "exec")]
        for table in found:
            found += table.get_children()
        return found

    def bound(table):
        return {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}

    def unbound(text):
        top, *inner = tables(text)
        symbols = [s for table in (top, *inner) for s in table.get_symbols()]
        return {s.get_name() for s in symbols if s.is_referenced() and s.is_global()} - bound(top)

    before, used = [], set()
    if names or others:
        used = unbound(program)
    for text in others * 2:
        try:
            binds = bound(tables(text)[0])
            if used & binds - set(dir(builtins)):
                used = (used - binds) | unbound(text)
                before.insert(0, compile(text, "program.py", "exec", dont_inherit=True))
        except SyntaxError:
            pass
    for name in names.keys() & used:
        module = __import__(names[name])
        setattr(builtins, name, module if name == names[name] else getattr(module, name))
    return [*before, compile(program, "program.py", "exec", dont_inherit=True)]
"""

# Is a program: the module __main__ is its own.
_PROGRAM = """
__program__ = compiled({program!r}, {others!r}, {names!r})
del compiled
while len(__program__) > 1:
    exec(__program__.pop(0))
exec(globals().pop("__program__")[0])
"""

# Calls a function of a program, whose own prints go nowhere. Where the program ends itself when it
# is loaded, what it has defined counts. A process that it starts anew loads it, and no more.
_CALLER = """
import json, os, sys, types
process, module = os.getpid(), types.ModuleType("program")
sys.modules["program"] = module
if __name__ == "__main__":
    channel = open(os.dup(1), "wb")
    for fd in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), fd)
try:
    for part in compiled({program!r}, {others!r}, {names!r}):
        exec(part, module.__dict__)
except SystemExit:
    if os.getpid() != process:
        raise
if __name__ == "__main__":
    first, *rest = {call!r}.split(".")
    function = getattr(module, first)
    for name in rest:
        function = getattr(function() if isinstance(function, type) else function, name)
    value = json.dumps(function(*json.loads({args!r}))).encode()
    if os.getpid() == process:
        channel.write(value)
        channel.flush()
    os._exit(0)
"""


class Verdict(NamedTuple):
    """passed, one bool a case, and why the first that failed did: '' where none has."""

    passed: list[bool]
    reason: str


def judge(program: str, cases: Sequence[Case], limits: Limits = Limits()) -> Verdict:  # noqa: B008
    """Run a Python program on every case, each in a new sandbox with `limits`.

    ValueError where there is no sandbox, with what to install.
    """
    check()
    found = [_failure(Program(program), case, limits) for case in cases]
    reasons = (f"case {number}: {why}" for number, why in enumerate(found, 1) if why)
    return Verdict([not why for why in found], next(reasons, ""))


def _failure(program: Program, case: Case, limits: Limits) -> str:
    """Why a program fails a case, '' where it passes."""
    done = run(*_asked(program, case), limits)
    return done.reason or _wrong(case, done.output)


@of_turn
def code(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    cases: Sequence[object],
    **columns: object,
) -> list[float | None]:
    """1.0 where a completion's program passes every case of the column `cases`, else 0.0.

    `extract_code` finds the program; names that it lacks are taken from the completion's other
    blocks. One that reads and prints must also end with exit status 0, as any judge of programs
    asks. The first case that fails is the last to be run. A record's `cases` is a list of Case's
    fields, or such a list as JSON. Abstains (None) where the column holds None; ValueError names
    the prompt and the case that is none.
    """
    records = zip(prompts, completions, map(_record, prompts, cases), strict=True)
    with ThreadPoolExecutor(_AT_ONCE) as threads:  # which wait for the sandboxes
        return list(threads.map(lambda record: _all_pass(*record[1:]), records))


def _record(prompt: Prompt, given: object) -> list[Case] | None:
    try:
        return None if given is None else parse_cases(given)
    except ValueError as error:
        raise ValueError(f"{error}; prompt: {excerpt(prompt)}") from error


def _all_pass(completion: Completion, cases: list[Case] | None) -> float | None:
    if cases is None:
        return None
    calls = {case.call.partition(".")[0] for case in cases if case.call is not None}
    program = extract_code(completion, calls)
    return float(not any(_failure(program, case, Limits()) for case in cases))


def _asked(program: Program, case: Case) -> tuple[str, bytes]:
    """The script to run for a case, and its standard input."""
    known = _library()
    words = {word for text in (program.text, *program.others) for word in _WORD.findall(text)}
    names = {word: known[word] for word in sorted(words & known.keys())}
    given = {"program": program.text, "others": program.others, "names": names}
    if case.call is None:
        return _COMPILED + _PROGRAM.format(**given), (case.stdin or "").encode()
    script = _CALLER.format(**given, call=case.call, args=json.dumps(case.args))
    return _COMPILED + script, b""


@functools.cache
def _library() -> dict[str, str]:
    """Where each name is that a program may use without import: name -> module."""
    found: dict[str, str] = {}
    for name in LIBRARY:
        module = importlib.import_module(name)
        public = getattr(module, "__all__", [n for n in dir(module) if not n.startswith("_")])
        found |= {n: name for n in public if not isinstance(getattr(module, n), types.ModuleType)}
    found |= {name: name for name in LIBRARY}
    return {name: module for name, module in found.items() if not hasattr(builtins, name)}


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


def same(a: object, b: object) -> bool:
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
