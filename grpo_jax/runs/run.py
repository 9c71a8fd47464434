"""The folder of a run: who may write in it, what made it, and its files of JSON lines."""

import contextlib
import dataclasses
import errno
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from ml_collections import FrozenConfigDict

from grpo_jax.config import fill_missing_fields
from grpo_jax.config.checks import config_diff
from grpo_jax.config.fields import FrozenFields
from grpo_jax.errors import UsageError
from grpo_jax.files import RUN_NAMES, Json, JsonMapping, at_home, fingerprint, read_object
from grpo_jax.runs.continuing import compare

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# What config.json holds beside the config's own fields. The first two may differ between starts.
_ENVIRONMENT = ("versions", "git_revision")
_BESIDE = (*_ENVIRONMENT, "sources", "changes")
_LINES = ("metrics.jsonl", "eval.jsonl", "completions.jsonl")


@dataclasses.dataclass(frozen=True)
class Run:
    """An open run: the paths in its folder. The lock is held until `close` or the process's end.

    resumed  True if the folder already held this run
    made     True if there was no folder
    """

    folder: Path
    resumed: bool
    made: bool
    lock: IO[str]

    @property
    def metrics(self) -> Path:
        """One JSON line per step."""
        return self.folder / "metrics.jsonl"

    @property
    def completions(self) -> Path:
        """JSON lines of sampled completions."""
        return self.folder / "completions.jsonl"

    @property
    def eval(self) -> Path:
        """One JSON line per evaluation."""
        return self.folder / "eval.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard events."""
        return self.folder / "tensorboard"

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer that the run began with, and reads and writes by."""
        return self.folder / "tokenizer"

    def kept(self) -> Json:
        """What a checkpoint's position has of the folder: see `starting.check_whole`."""
        return {"files": self.sizes(), "tokenizer": fingerprint(self.tokenizer)}

    def sizes(self) -> dict[str, int]:
        """The bytes of each file of JSON lines."""
        paths = (self.folder / name for name in _LINES)
        return {path.name: path.stat().st_size for path in paths if path.exists()}

    def close(self) -> None:
        """Let another process open the folder."""
        self.lock.close()


def open_run(
    workdir: Path | str,
    config: FrozenConfigDict,
    sources: Mapping[str, str] | None = None,
    position: Json | None = None,
) -> Run:
    """Create or reopen the folder of a run, lock it, and keep `config` in its config.json.

    sources   what the task reads, {file: fingerprint}; None compares and keeps nothing
    position  of the run's newest checkpoint

    config.json comes first, so that a folder with anything else of a run and without it is one that
    lost it. Changes that a run may resume with (`continuing`) are recorded there under "changes".
    Raises UsageError as `check_run` does, if the folder cannot be written, and if another process
    has it open.
    """
    folder = at_home(workdir)
    record = {**config.to_dict(), **environment(), "sources": dict(sources or {}), "changes": []}
    with writing_in(folder), contextlib.ExitStack() as on_failure:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = on_failure.enter_context(_lock(folder))
        path, kept = folder / "config.json", {}
        resumed, changes = path.exists(), check_run(folder, config, sources, position)
        if resumed:
            kept = _read_config(folder)
            _warn_of_other_code(folder, kept, record)
            record |= {name: kept[name] for name in _BESIDE if name in kept}
            record["sources"] = record["sources"] or dict(sources or {})  # none: it is older
            record["changes"] = [*record["changes"], *changes]
        if changes or not resumed or record["sources"] != kept.get("sources", {}):
            write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
        on_failure.pop_all()
    return Run(folder, resumed, made, lock)


def check_run(
    workdir: Path | str,
    config: FrozenConfigDict,
    sources: Mapping[str, str] | None = None,
    position: Json | None = None,
) -> list[Json]:
    """The changed fields with which the run in a folder resumes; none where it is new.

    Changes nothing. Raises UsageError where the folder holds a run of another config, or one that
    has lost its config.json, and where a source has changed; options as of `open_run`.
    """
    folder = at_home(workdir)
    if not (folder / "config.json").exists():
        left = [name for name in RUN_NAMES if name != ".lock" and (folder / name).exists()]
        if left:
            raise UsageError(
                f"{folder}: config.json is missing, beside {left[0]} of a run; put it back, or "
                "choose another --workdir to start anew"
            )
        return []
    kept = _read_config(folder)
    old = {k: v for k, v in kept.items() if k not in _BESIDE}
    changes, refused = compare(old, config.to_dict(), position)
    if refused:
        raise UsageError(
            f"{folder} holds a run of another config; choose another --workdir, or undo: "
            + "; ".join(refused)
        )
    for name in changed_sources(kept, sources):
        raise UsageError(
            f"{name} is not what the run in {folder} began with: its content has changed; put it "
            "back, or choose another --workdir to start anew"
        )
    for name in _unlike(kept.get("sources") or {}, sources) if sources is not None else ():
        raise UsageError(
            f"{name} is what the run in {folder} began with, and is not read now; put the files "
            "back as they were, or choose another --workdir to start anew"
        )
    return changes


def changed_sources(record: JsonMapping, sources: Mapping[str, str] | None) -> list[str]:
    """Which of the sources are not as config.json of a run has them; none where it has none."""
    began = record.get("sources")
    return _unlike(sources or {}, began) if began else []


def _unlike(some: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """Which of some fingerprints are not among others: by name, or by what another name has."""
    return [
        name
        for name, found in some.items()
        if (others[name] != found if name in others else found not in others.values())
    ]


def load_config(workdir: Path | str) -> FrozenConfigDict:
    """Return the resolved config of the run in `workdir`; UsageError if it holds none."""
    return FrozenFields({k: v for k, v in load_record(workdir).items() if k not in _BESIDE})


def load_record(workdir: Path | str) -> Json:
    """All that config.json of the run in `workdir` says; UsageError if it holds none."""
    return _read_config(at_home(workdir))


def environment() -> Json:
    """Return what a config does not say: package versions and the code's git revision or None."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    versions["python"] = platform.python_version()
    return {"versions": versions, "git_revision": _git_revision()}


def _git_revision() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    # Excluding every tag leaves the hash, and "-dirty" after it when files were changed.
    options = ("--always", "--abbrev=40", "--exclude=*", "--dirty")
    command = [git, "-C", str(Path(__file__).parent), "describe", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _read_config(folder: Path) -> Json:
    path = folder / "config.json"
    if not path.is_file():
        raise UsageError(f"{folder} holds no run: there is no config.json in it")
    try:
        record = read_object(path)
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        _check_beside(record)
        return fill_missing_fields(record)
    except UsageError as error:
        raise UsageError(f"{path} is not what a run wrote: {error}") from error


def _check_beside(record: JsonMapping) -> None:
    """UsageError where what stands beside the config's fields is not as `open_run` writes it."""
    for name in ("versions", "sources"):
        found = record.get(name, {})
        if not isinstance(found, dict) or not all(isinstance(x, str) for x in found.values()):
            raise UsageError(f"{name} is {found!r}; valid: an object of texts")
    changes = record.get("changes", [])
    known = {"step", "field", "old", "new"}
    if not isinstance(changes, list) or any(
        not isinstance(change, dict) or change.keys() != known for change in changes
    ):
        raise UsageError(f"changes is {changes!r}; valid: a list of {', '.join(sorted(known))}")


def _warn_of_other_code(folder: Path, old: Json, new: Json) -> None:
    then, now = ({k: r[k] for k in _ENVIRONMENT if k in r} for r in (old, new))
    if changed := config_diff(then, now):
        print(
            f"warning: {folder} was started with other code: {'; '.join(changed)}", file=sys.stderr
        )


_HELD: weakref.WeakValueDictionary[Path, IO[str]] = weakref.WeakValueDictionary()  # by folder


def _lock(folder: Path) -> IO[str]:
    # A POSIX record lock, not flock(2): forked reward workers inherit the latter, and one of them
    # outliving a killed parent would keep the folder locked.
    # It does not lock this process out, and closing a second file of it would unlock the first's.
    if (held := _HELD.get(folder.resolve())) is not None and not held.closed:
        raise UsageError(f"{folder} is in use by this process; close what has it open first")
    lock = (folder / ".lock").open("a+")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise UsageError(f"{folder} is in use by another process (pid {holder})") from error
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    _HELD[folder.resolve()] = lock
    return lock


@contextlib.contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Turn a failure to write (no permission, no space, no folder) into a UsageError."""
    try:
        yield
    except OSError as error:
        file = Path(os.fsdecode(error.filename)).name if isinstance(error.filename, str) else ""
        of_disk = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        named = "" if of_disk or file in ("", *folder.parts) else f" ({file})"
        raise UsageError(f"cannot write in {folder}: {error.strerror or error}{named}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file `path` whole: a reader, or a crash, sees the old content or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    with writing_in(path.parent), temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        temporary.replace(path)


def append_line(path: Path, record: JsonMapping) -> None:
    """Append one JSON object as one line, on the disk when this returns.

    "step" comes first, the other keys sorted, those of wall-clock time ("time/...") last. NumPy
    and JAX values become plain ones; NaN and infinities, which JSON lacks, become null.
    """
    order = sorted(record, key=lambda key: (key != "step", key.startswith("time/"), key))
    line = json.dumps({key: _json(record[key]) for key in order}, allow_nan=False)
    with writing_in(path.parent), path.open("ab", buffering=0) as file:
        data = f"{line}\n".encode()
        while data:
            data = data[file.write(data) :]
        os.fsync(file.fileno())


def write_lines(path: Path, records: Iterable[JsonMapping]) -> None:
    """Replace a file of JSON lines whole, one object a line."""
    write_atomically(path, "".join(f"{json.dumps(record)}\n" for record in records).encode())


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json(v) for v in value]
    if hasattr(value, "tolist"):
        return _json(np.asarray(value).tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_lines(path: Path) -> list[Json]:
    """Return the objects of a file of JSON lines; [] if there is no file.

    A torn last line, left by a killed process, is not returned. Raises UsageError naming the
    file and the line if another line is broken.
    """
    *lines, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
    del torn  # a whole line ends in a newline: what follows the last one is torn or empty
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break  # a file system may leave zeros where a lost write was to be
            raise UsageError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            shown = line.decode(errors="replace")[:40]
            raise UsageError(f"{path}, line {number} is {shown}; valid: a JSON object")
        records.append(record)
    return records


def read_steps(path: Path) -> list[Json]:
    """As `read_lines`, of a file whose every line has its step; UsageError for one without."""
    records = read_lines(path)
    for number, record in enumerate(records, 1):
        if not isinstance(step := record.get("step"), int) or isinstance(step, bool):
            raise UsageError(f'{path}, line {number}: "step" is {step!r}; valid: a number of steps')
    return records


def truncate_after(path: Path, step: int) -> None:
    """Drop the torn last line and every record of a later step than `step`, atomically."""
    if not path.exists():
        return
    write_lines(path, [r for r in read_steps(path) if r["step"] <= step])
