"""Files and folders: what they hold, those that appear whole, and those that stay as they are."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError, safe_open

Json: TypeAlias = dict[str, Any]  # a JSON object
JsonMapping: TypeAlias = Mapping[str, Any]  # one that is only read

TRACKER_IDS = "tracker_ids.json"
# What a run's folder holds; see `runs`. Nothing else may be written there under these names.
RUN_NAMES = (
    *("config.json", "metrics.jsonl", "eval.jsonl", "completions.jsonl", "checkpoints"),
    *("tokenizer", "cold_start", "tensorboard", "curves.png", ".lock"),
    *("profile", "wandb", TRACKER_IDS),
)
INDEX = "model.safetensors.index.json"
# What makes up a tokenizer and its use, besides config.json and the weights.
TEXT_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model"),
    *("chat_template.jinja", "generation_config.json", "vocab.json", "merges.txt"),
    *("added_tokens.json", "LICENSE"),
)
_EXPORTED = {"config.json", "adapter_config.json", INDEX, *TEXT_FILES}
_WEIGHTS = re.compile(r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors")
# Metadata of the weights that an export writes. Transformers and PEFT want "format"; the other
# marks an export of ours, unlike a model that somebody else made of files with the same names.
METADATA = {"format": "pt", "written_by": "grpo_jax"}


def at_home(path: str | Path) -> Path:
    """A path, where "~" is the user's home, and any other user's that the system knows."""
    return Path(os.path.expanduser(path))


def _real(path: Path) -> Path:
    """The path without links and "~"; of links in a loop, one of them."""
    return Path(os.path.realpath(at_home(path)))


@contextlib.contextmanager
def replacing(out: Path, source: Path | None = None) -> Iterator[Path]:
    """An empty folder to fill, which becomes `out` at the end; after an exception `out` is as it
    was. ValueError as of `check_replaceable`."""
    check_replaceable(out, source)
    out = _real(out)
    made = _made_beside(out)
    try:
        with system_errors(out):
            yield made
        _share(made)
        check_replaceable(out, source)  # what came there meanwhile stays
        old = made.with_name(f"{made.name}.old")
        if out.exists():
            os.rename(out, old)
        try:
            os.rename(made, out)
        except OSError:
            if old.exists():
                os.rename(old, out)
            raise
        if old.exists():
            _remove_export(old)
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextlib.contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes the new folder `out` at the end."""
    made = _made_beside(out)
    try:
        with system_errors(out):
            yield made
        _share(made)
        os.rename(made, out)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _made_beside(out: Path) -> Path:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:  # which names the folder that was to be filled
        raise OSError(error.errno, error.strerror, str(out)) from error


@contextlib.contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Name `path` in an OSError that names nothing, and raise one where a library of another
    language has an exception for what the system refused: a full disk, above all."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), str(path)) from error
        raise


def check_replaceable(out: Path, source: Path | None = None) -> None:
    """ValueError, saying what stands there, unless `out` is free for an export: not there, an empty
    folder, or wholly an export of ours, and no part of a run. OSError where it is closed.

    source  the model's own directory, which stays even where it is an export
    """
    full = _real(out)
    stands = inside_run(full)
    if stands is None and (full.exists() or full.is_symlink()):
        stands = _occupied(full)
        if source is not None and full == _real(source):
            stands = "is the model's own directory (config.model.path)"
        elif Path.cwd().is_relative_to(full):
            stands = "is the current directory, or above it"
    if stands is not None:
        raise ValueError(
            f"{out} {stands}; valid: a new or empty folder, or one that holds an export and "
            "nothing else"
        )
    if full.is_dir():  # what it holds is to go
        check_writable(full)


def check_writable(folder: Path) -> None:
    """OSError, naming the folder, where no file can be made in it."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def inside_run(path: Path) -> str | None:
    """What to say of a path that is one of a run's own files or folders, or in one; else None."""
    full = _real(path)
    for above in full.parents:
        name = full.relative_to(above).parts[0]
        if name in RUN_NAMES and holds_run(above):
            return f"is, or lies in, {name} of the run in {above}"
    return None


def holds_run(folder: Path) -> bool:
    """Whether a run is, or was, in this folder: its config.json beside what only a run has."""
    others = (".lock", "metrics.jsonl", "checkpoints", "cold_start")
    return (folder / "config.json").exists() and any((folder / n).exists() for n in others)


def listed(folder: Path, limit: int = 3) -> str:
    """The first names in a folder, for a message."""
    names = sorted(p.name for p in folder.iterdir())
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _occupied(out: Path) -> str | None:
    """What stands at `out`, unless an export may replace it."""
    if not out.is_dir():
        return "is a file"
    if holds_run(out):
        return "holds a run"
    found = sorted(out.iterdir())
    foreign = [p.name for p in found if not _is_exported(p)]
    if foreign:
        return f"holds {foreign[0]}, which no export writes, among {listed(out)}"
    weights = [p for p in found if _WEIGHTS.fullmatch(p.name)]
    if found and not (weights and all(map(_is_ours, weights))):
        return f"holds a model that is no export of a run ({listed(out)})"
    return None


def _is_exported(path: Path) -> bool:
    named = path.name in _EXPORTED or _WEIGHTS.fullmatch(path.name) is not None
    return named and path.is_file() and not path.is_symlink()


def _is_ours(weights: Path) -> bool:
    with weights.open("rb"):  # the library says of a file that may not be read that there is none
        pass
    try:
        with safe_open(weights, framework="np") as file:
            return (file.metadata() or {}).get("written_by") == METADATA["written_by"]
    except SafetensorError:
        return False


def _remove_export(folder: Path) -> None:
    """Delete a folder with the files of an export; what else is in it stays, by OSError."""
    for path in folder.iterdir():
        if _is_exported(path):
            path.unlink()
    folder.rmdir()


def _share(folder: Path) -> None:
    """Give what `mkdtemp` and safetensors keep to one user the permissions of ordinary files."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for path in folder.iterdir():
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def read_object(path: Path) -> Json:
    """The JSON object in a file.

    ValueError names the file where it holds anything else, and OSError where it cannot be read.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # bytes that are no text among them
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {_kind(value)}; valid: a JSON object")
    return value


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def fingerprint(path: Path) -> str:
    """The sha256 of a file, or of the names and contents of all .json files below a folder."""
    path = at_home(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for part in json_files(path):
        whole.update(f"{part.relative_to(path)} {fingerprint(part)}\n".encode())
    return whole.hexdigest()


def json_files(path: Path) -> list[Path]:
    """The .json files below a folder, by name; OSError for what may not be listed, which a glob
    would leave out."""

    def refused(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    walk = os.walk(path, onerror=refused)
    return sorted(Path(at, name) for at, _, names in walk for name in names if _is_json(name))


def _is_json(name: str) -> bool:
    return name.endswith(".json")
