"""Records of files: JSON lines, parquet, a JSON list, or a folder of one-record JSON files."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from grpo_jax.rewards.registry import unknown

Record = dict[str, Any]
T = TypeVar("T")
U = TypeVar("U")


def read_table(path: Path, make: Callable[[Record], T]) -> list[T]:
    """`make(record)` for every line of a file of JSON lines, or row of a .parquet file.

    What `make` refuses by ValueError is named by file and line, or by the row's number from 1.
    FileNotFoundError where there is no such file; ModuleNotFoundError names parquet's extra.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; valid: a file of JSON lines, or .parquet")
    if path.suffix == ".parquet":
        return _numbered(path, _rows(path), make)
    lines = enumerate(path.read_bytes().split(b"\n"), start=1)
    named = ((f"{path}:{number}", line) for number, line in lines if line.strip())
    return _made(named, lambda line: make(_object(_json(line))))


def read_list(path: Path, make: Callable[[Record], T]) -> list[T]:
    """`make(record)` for every object of the list in a JSON file; errors as in `read_table`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; valid: a JSON file with a list of objects")
    [records] = _made([(str(path), path.read_bytes())], _json)
    if not isinstance(records, list):
        raise ValueError(f"{path}: a {type(records).__name__}; valid: a list of objects")
    return _numbered(path, records, lambda record: make(_object(record)))


def read_folder(path: Path, make: Callable[[Record], T]) -> list[T]:
    """`make(record)` for every .json file below a folder, by name; errors name the file."""
    files = sorted(path.rglob("*.json"))
    if not files:
        raise FileNotFoundError(f"{path}: no .json files; valid: a folder of one-record JSON files")
    contents = ((str(file), file.read_bytes()) for file in files)
    return _made(contents, lambda content: make(_object(_json(content))))


def text(record: Record, column: str) -> str:
    """The text of a column; ValueError where it is missing, no text or empty."""
    if column not in record:
        raise ValueError(unknown("column", column, record))
    value = record[column]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"column {column!r} is {shown(value)}; valid: text that is not empty")
    return value


def shown(value: Any) -> str:
    """A value as JSON, cut for an error message."""
    return str(json.dumps(value, default=str))[:60]


def _made(named: Iterable[tuple[str, T]], make: Callable[[T], U]) -> list[U]:
    results = []
    for name, item in named:
        try:
            results.append(make(item))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return results


def _numbered(path: Path, records: Iterable[T], make: Callable[[T], U]) -> list[U]:
    named = ((f"{path}: record {number}", r) for number, r in enumerate(records, start=1))
    return _made(named, make)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} " if b"\n" in content.strip() else ""
        raise ValueError(f"not JSON: {error.msg} at {where}column {error.colno}") from error


def _object(value: Any) -> Record:
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__}; valid: an object with named columns")
    return value


def _rows(path: Path) -> list[Record]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: parquet needs an extra: pip install 'grpo_jax[parquet]' ({error})"
        ) from error
    try:
        return parquet.read_table(path).to_pylist()
    except ValueError as error:  # pyarrow's own for a file of another format
        raise ValueError(f"{path}: not parquet: {error}") from error
