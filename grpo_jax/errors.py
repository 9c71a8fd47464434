"""What errors say: bad input in one line, which names what is wrong and what would be valid."""

import difflib
import os
from collections.abc import Iterable


class UsageError(ValueError):
    """Bad input; the message is one line for the user and needs no traceback."""


def described(error: OSError) -> str:
    """The text of an error: of the system's, the file and the reason; of ours, its message."""
    if error.errno is None:
        return str(error)
    file = error.filename
    name = os.fsdecode(file) if isinstance(file, str | bytes) else None
    return ": ".join(filter(None, (name, error.strerror or str(error))))


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks."""
    return " ".join(str(error).split())


def excerpt(value: object, limit: int = 120) -> str:
    """`repr(value)`, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def nearest(name: str, valid: Iterable[str]) -> str:
    """The member of `valid` most like `name`; of equals the first. Names may be dotted.

    The last component counts double. A `name` of one component is compared with each: a user who
    writes 'learning_rate' most likely left out the group that it is in. ValueError where none is
    valid.
    """
    names = list(valid)
    parents = [other for other in names if name.startswith(f"{other}.")]
    return parents[0] if parents else max(names, key=lambda other: _likeness(name, other))


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """The text of an error for a name that is not among `valid`, with the nearest that is."""
    names = sorted(valid)
    hint = ""
    if names and _alike(name, near := nearest(name, names)) >= SIMILAR:
        hint = f"did you mean {near!r}? "
    return f"unknown {kind} {name!r}; {hint}valid: {', '.join(names)}"


SIMILAR = 0.5  # of 1; what is less like a name was hardly meant by it


def _likeness(name: str, other: str) -> float:
    leaf, *groups = reversed(other.split("."))
    if "." in name:
        return 2 * _alike(name.split(".")[-1], leaf) + _alike(name, other)
    # A group's own name may have been meant: its first field stands for it.
    return max(_alike(name, leaf), *[0.99 * _alike(name, group) for group in groups], 0.0)


def _alike(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
