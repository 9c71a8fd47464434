"""The cases that a program is tried on, as a data set's column `cases` has them."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_MISSING: Any = type("Missing", (), {"__repr__": lambda self: "nothing"})()
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
KINDS = "valid: stdin and stdout, or call, args and expected"


@dataclass(frozen=True)
class Case:
    """One test of a program, either of two kinds.

    stdin, stdout         what it reads, and must print (except for spaces at the ends of lines)
    call, args, expected  a function ("f", or "Solution.f" of a class made without arguments), its
                          arguments and the value it must return, all as JSON has them

    ValueError says which field cannot be, and what could.
    """

    stdin: str | None = None
    stdout: str | None = None
    call: str | None = None
    args: Sequence[Any] | None = ()
    expected: Any = _MISSING

    def __post_init__(self):
        for name in ("stdin", "stdout", "call"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{name}={value!r}; valid: text")
            if value is not None and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise ValueError(f"{name} holds half of a surrogate pair; valid: text")
        if (self.stdout is None) == (self.call is None):
            given = {k: v for k, v in vars(self).items() if v not in (None, (), _MISSING)}
            raise ValueError(f"it holds {', '.join(given) or 'nothing'}; {KINDS}")
        if self.call is None:
            # A table's column holds None where a record has no such field.
            if self.args not in (None, (), []) or self.expected not in (None, _MISSING):
                raise ValueError(f"stdout beside args or expected; {KINDS}")
            return
        if self.stdin is not None:
            raise ValueError(f"call={self.call!r} beside stdin; {KINDS}")
        if not _NAME.fullmatch(self.call):
            raise ValueError(f"call={self.call!r}; valid: a function's name, or a class's and its")
        if not isinstance(self.args, list | tuple):
            raise ValueError(f"args={self.args!r}; valid: a list, [] for no arguments")
        if self.expected is _MISSING:
            raise ValueError(f"call={self.call!r} without expected; {KINDS}")
        for name in ("args", "expected"):
            try:
                json.dumps(getattr(self, name))
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{name}: {error}; valid: what JSON has") from error


def parse_cases(given: object) -> list[Case]:
    """The cases of a record: a list of Case's fields, or such a list as JSON.

    ValueError names the case by its number.
    """
    try:
        records = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise ValueError(f"column cases is no JSON: {error}") from error
    if not isinstance(records, list | tuple) or not records:
        raise ValueError(f"column cases is {records!r:.80}; valid: a list of at least one case")
    return [_case(record, number) for number, record in enumerate(records, 1)]


def _case(record: object, number: int) -> Case:
    fields = Case.__dataclass_fields__
    try:
        if not isinstance(record, dict):
            raise ValueError(f"{record!r:.80}; valid: an object with {', '.join(fields)}")
        if unknown := [name for name in record if name not in fields]:
            raise ValueError(f"unknown field {unknown[0]!r}; valid: {', '.join(fields)}")
        return Case(**record)
    except ValueError as error:
        raise ValueError(f"column cases: case {number}: {error}") from error
