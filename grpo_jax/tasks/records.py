"""Records of files: JSON lines, parquet, a JSON list, or a folder of one-record JSON files.

A file that is malformed is refused: no JSON, or records without the columns that they need. A
record that is well formed but has no answer, such as an empty \\boxed{}, is dropped instead,
counted and named in one warning, unless the option `unanswered` says "refuse" (or, of the task
jsonl, "keep").
"""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from grpo_jax.errors import one_line, unknown
from grpo_jax.files import json_files
from grpo_jax.tasks.problem import Problem

Record = dict[str, Any]
T = TypeVar("T")
U = TypeVar("U")


class NoAnswer(ValueError):
    """What a record without an answer raises."""


Dropped = list[str] | None  # the records that were dropped, and why; None where none may be


def dropping(unanswered: str, valid: Sequence[str] = ("drop", "refuse")) -> Dropped:
    """What the functions below note dropped records in, by the option of that name."""
    if unanswered not in valid:
        raise ValueError(unknown("unanswered", unanswered, valid))
    return [] if unanswered == "drop" else None


def warn_of_dropped(dropped: Dropped, records: int) -> None:
    """One warning, on stderr, that counts and names the dropped ones of so many records."""
    if dropped:
        more = f"; and {len(dropped) - 3} more" if len(dropped) > 3 else ""
        print(
            f"warning: {len(dropped)} of {records} records have no answer and are dropped "
            f"(unanswered='refuse' refuses them): {'; '.join(dropped[:3])}{more}",
            file=sys.stderr,
        )


def read_table(path: Path, make: Callable[[Record], T], dropped: Dropped = None) -> list[T]:
    """`make(record)` for every line of a file of JSON lines, or row of a .parquet file.

    What `make` refuses by ValueError is named by file and line, or by the row's number from 1; by
    NoAnswer, noted in `dropped`, but NoAnswer where that is every record. ValueError for a file
    without records, FileNotFoundError where there is none; ModuleNotFoundError names parquet's
    extra.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; valid: a file of JSON lines, or .parquet")
    if path.suffix == ".parquet":
        return _numbered(path, _rows(path), make, dropped)
    lines = enumerate(path.read_bytes().split(b"\n"), start=1)
    named = ((f"{path}:{number}", line) for number, line in lines if line.strip())
    return _made(path, named, lambda line: make(_object(_json(line))), dropped)


def read_list(path: Path, make: Callable[[Record], T], dropped: Dropped = None) -> list[T]:
    """`make(record)` for every object of the list in a JSON file; errors as in `read_table`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; valid: a JSON file with a list of objects")
    [records] = _made(path, [(str(path), path.read_bytes())], _json)
    if not isinstance(records, list):
        raise ValueError(f"{path}: a {type(records).__name__}; valid: a list of objects")
    return _numbered(path, records, lambda record: make(_object(record)), dropped)


def read_folder(path: Path, make: Callable[[Record], T], dropped: Dropped = None) -> list[T]:
    """`make(record)` for every .json file below a folder, by name; errors name the file."""
    files = json_files(path)
    if not files:
        raise FileNotFoundError(f"{path}: no .json files; valid: a folder of one-record JSON files")
    contents = ((str(file), file.read_bytes()) for file in files)
    return _made(path, contents, lambda content: make(_object(_json(content))), dropped)


def text(record: Record, column: str, is_answer: bool = False) -> str:
    """The text of a column; ValueError where it is missing, no text or empty.

    is_answer  an empty one, or null, is NoAnswer
    """
    if column not in record:
        raise ValueError(unknown("column", column, record))
    value = record[column]
    if is_answer and is_blank(value):
        raise NoAnswer(f"column {column!r} is {shown(value)}")
    if not isinstance(value, str) or is_blank(value):
        raise ValueError(f"column {column!r} is {shown(value)}; valid: text that is not empty")
    return value


def is_blank(value: object) -> bool:
    """Whether a value is null, not a number, an empty list or object, or text with nothing to see:
    spaces, or marks such as U+200B and U+FEFF."""
    if isinstance(value, str):
        return not any(c.isprintable() and not c.isspace() for c in value)
    return value is None or value != value or value in ([], {})


def shown(value: object) -> str:
    """A value as JSON, cut for an error message."""
    return str(json.dumps(value, default=str))[:60]


def _made(
    path: Path, named: Iterable[tuple[str, T]], make: Callable[[T], U], dropped: Dropped = None
) -> list[U]:
    results, without = [], []
    for name, item in named:
        try:
            results.append(_placed(make(item), name))
        except ValueError as error:
            if dropped is None or not isinstance(error, NoAnswer):
                raise ValueError(f"{name}: {error}") from error
            without.append(f"{name}: {error}")
        except RecursionError as error:
            raise ValueError(f"{name}: nested too deeply; valid: a few levels") from error
    if without and not results:
        raise NoAnswer(f"{path}: no record of {len(without)} has an answer; {without[0]}")
    if not results:
        raise ValueError(f"{path}: it holds no records; valid: one or more")
    if dropped is not None:
        dropped.extend(without)
    return results


def _placed(made: U, name: str) -> U:
    """What was made of a record, its problem with the name of the record."""
    if isinstance(made, Problem):
        return cast(U, dataclasses.replace(made, where=name))
    if isinstance(made, tuple):
        return cast(U, tuple(_placed(part, name) for part in made))
    return made


def _numbered(
    path: Path, records: Iterable[T], make: Callable[[T], U], dropped: Dropped
) -> list[U]:
    named = ((f"{path}: record {number}", r) for number, r in enumerate(records, start=1))
    return _made(path, named, make, dropped)


def _json(content: bytes) -> object:
    try:
        return json.loads(content.decode("utf-8-sig"))  # files of Windows begin with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} " if b"\n" in content.strip() else ""
        raise ValueError(f"not JSON: {error.msg} at {where}column {error.colno}") from error


def _object(value: object) -> Record:
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}; valid: an object with named columns")
    for column, item in value.items() if _half(value) else ():
        if half := _half([column, item]):
            raise ValueError(
                f"column {shown(column)} holds {shown(half[0])}, half of a character (a lone "
                "surrogate); valid: whole characters"
            )
    return value


def _half(value: object) -> re.Match[str] | None:
    """Half of a character, which JSON may write as an escape, but no tokenizer or file takes."""
    return re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False))


def _rows(path: Path) -> list[Record]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: parquet needs an extra: pip install 'grpo_jax[parquet]' ({error})"
        ) from error
    try:
        return parquet.read_table(path).to_pylist()
    except (ValueError, OverflowError, OSError, ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the file system's own
            raise
        raise ValueError(f"{path}: it cannot be read as parquet: {one_line(error)}") from error
