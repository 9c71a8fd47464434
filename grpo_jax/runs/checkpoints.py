"""Checkpoints: Orbax writes the arrays; checksums and one rename make a checkpoint whole or absent.

    <directory>/<step>/state/           the training state, in Orbax's format
    <directory>/<step>/waiting/         rollouts that wait in the source of batches, if any
    <directory>/<step>/position.json    where the task's iterator stands
    <directory>/<step>/checksums.json   sha256 of every other file

A step is written as `.tmp-<step>` and renamed when all of it is on the disk, so that a process
killed at any moment leaves the earlier checkpoints as they were.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from grpo_jax.console.progress import doing
from grpo_jax.errors import UsageError
from grpo_jax.files import Json, read_object, system_errors
from grpo_jax.runs.run import writing_in
from grpo_jax.types import Params, merged

PyTree = Any
# How a file of a checkpoint is missing; one that may not be read is not, and no damage.
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class Restored(NamedTuple):
    """A checkpoint: the training state, the position, and what waited in the source, by name."""

    state: PyTree
    position: Json
    waiting: dict[str, np.ndarray]


def save(
    directory: Path | str,
    step: int,
    state: PyTree,
    position: Json,
    keep: int = 2,
    waiting: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a checkpoint, on the disk when this returns, and delete all except the newest `keep`.

    state     pytree of arrays, typed PRNG keys included; None subtrees are kept
    position  any JSON-able dict
    waiting   arrays on the host, by name, or None

    Raises UsageError if the directory cannot be written and ValueError if the step is there.
    """
    directory = Path(directory).absolute()
    final, temporary = directory / str(step), directory / f".tmp-{step}"
    if final.exists():
        raise ValueError(f"{directory} already holds a checkpoint of step {step}")
    with writing_in(directory):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _save_arrays(temporary / "state", state)
        if waiting:
            _save_arrays(temporary / "waiting", dict(waiting))
        (temporary / "position.json").write_text(json.dumps(position))
        sums = {name: _sha256(temporary / name) for name in _files(temporary)}
        (temporary / "checksums.json").write_text(json.dumps(sums))
        for name in ("", "checksums.json"):
            _sync(temporary / name)
        temporary.rename(final)
        _sync(directory)
        for old in steps(directory)[:-keep]:
            _delete(directory / str(old))


def steps(directory: Path | str) -> list[int]:
    """Return the steps that have a checkpoint, damaged or not, oldest first.

    [] where there is no directory; OSError where it cannot be listed, which a glob would hide.
    """
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.lexists(directory):  # a file stands there
            raise
        return []
    return sorted(step for step in map(step_of, names) if step is not None)


def step_of(name: str) -> int | None:
    """The step of a checkpoint by its folder's name; None for any other name, such as 007."""
    return int(name) if re.fullmatch("0|[1-9][0-9]*", name) else None


def newest_position(directory: Path | str) -> Json | None:
    """The position in the newest checkpoint that has a sound one; None where there is none.

    Reads nothing else, and changes nothing. OSError where one may not be read.
    """
    for number in reversed(steps(directory)):
        folder = Path(directory) / str(number)
        path = folder / "position.json"
        try:
            if read_object(folder / "checksums.json").get(path.name) == _sha256(path):
                return read_object(path)
        except (*_NOT_THERE, ValueError):
            continue  # `damage` says which
    return None


def restore_latest(directory: Path | str, abstract_state: PyTree) -> Restored | None:
    """Return the newest whole checkpoint, or None if there is none.

    abstract_state  a dataclass of jax.ShapeDtypeStruct leaves; a leaf's sharding is where the
                    array is put

    Damaged checkpoints are reported on stderr and set aside as `<step>.damaged`; what a killed
    process left is deleted. Only the process that holds the run may call this.
    """
    directory = Path(directory).absolute()
    for leftover in directory.glob(".tmp-*"):
        _remove(leftover)
    for folder in _newest_whole(directory, set_aside=True):
        with doing(f"reading {folder}"):
            state = _restore_arrays(folder / "state", abstract_state)
            waiting = _restore_waiting(folder / "waiting")
        return Restored(state, read_object(folder / "position.json"), waiting)
    return None


class RestoredParams(NamedTuple):
    """The parameters of a checkpoint, and its step."""

    params: Params
    step: int


def restore_params(directory: Path | str, step: int | None = None) -> RestoredParams:
    """The parameters of the newest whole checkpoint, or of a step's, on the first device.

    The params are those of the checkpoint, the routers' biases among them. Reads nothing else,
    and changes nothing: a run may be writing there.
    Raises UsageError if there is no whole checkpoint, or none of that step.
    """
    directory = Path(directory).absolute()
    if step is not None and step not in steps(directory):
        raise UsageError(f"no checkpoint of step {step} in {directory}; valid: {steps(directory)}")
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for folder in _newest_whole(directory, set_aside=False, step=step):
        reading = doing(f"reading {folder}")
        with reading, ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.metadata(folder / "state").item_metadata.tree
            meta = {"policy": {name: part for name, part in tree["policy"].items() if part}}
            item = jax.tree.map(lambda m: _abstract(m, place), meta)
            arguments = ocp.args.PyTreeRestore(
                item=item,
                restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                partial_restore=True,
            )
            restored = checkpointer.restore(folder / "state", args=arguments)
        return RestoredParams(merged(*restored["policy"].values()), int(folder.name))
    raise UsageError(f"no checkpoint in {directory}")


def damage(folder: Path) -> str | None:
    """Return what is wrong with the files of a checkpoint, in a few words, or None."""
    try:
        sums = read_object(folder / "checksums.json")
    except (*_NOT_THERE, ValueError):
        return "checksums.json is missing or broken"
    for name, expected in sums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _sha256(folder / name) != expected:
            return f"{name} has changed"
    return None


def _newest_whole(directory: Path, set_aside: bool, step: int | None = None) -> Iterator[Path]:
    for number in reversed(steps(directory) if step is None else [step]):
        folder = directory / str(number)
        problem = damage(folder)
        if problem is None:
            yield folder
            continue
        print(f"warning: checkpoint {folder} is damaged ({problem}); skipped", file=sys.stderr)
        if set_aside:
            folder.rename(_free(directory / f"{number}.damaged"))


def _free(path: Path) -> Path:
    """The path, or with a number after it the first one at which nothing stands."""
    others = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    return next(p for p in itertools.chain([path], others) if not p.exists())


def _save_arrays(folder: Path, state: PyTree) -> None:
    verbosity, before = logging.get_verbosity(), sys.unraisablehook
    logging.set_verbosity(logging.FATAL)  # Orbax logs with a traceback what it then raises
    sys.unraisablehook = _but_for_late_writes(before)
    try:
        # TensorStore has its own message, and its own exception, for a full disk.
        with system_errors(folder), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder, state)
            checkpointer.wait_until_finished()
        sys.unraisablehook = before
    finally:
        logging.set_verbosity(verbosity)


def _but_for_late_writes(hook: Callable[[Any], Any]) -> Callable[[Any], None]:
    """`hook`, but nothing for a write of TensorStore's that ends after another one has failed.

    Orbax closes the event loop at the first failure, and every other write of the checkpoint then
    finds it closed, each with a traceback, until the process ends.
    """

    def kept(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            hook(unraisable)

    return kept


def _restore_arrays(folder: Path, abstract_state: PyTree) -> PyTree:
    """The state; a field that is None and that the checkpoint is older than stays None."""
    with ocp.StandardCheckpointer() as checkpointer:
        written = checkpointer.metadata(folder).item_metadata.tree
        fields = vars(abstract_state).items()
        item = {name: x for name, x in fields if x is not None or name in written}
        return abstract_state.replace(**checkpointer.restore(folder, item))


def _restore_waiting(folder: Path) -> dict[str, np.ndarray]:
    if not folder.exists():
        return {}
    with ocp.StandardCheckpointer() as checkpointer:
        return {name: np.asarray(x) for name, x in checkpointer.restore(folder).items()}


def _abstract(meta: Any, place: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(meta.shape, meta.dtype, sharding=place)


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _delete(folder: Path) -> None:
    # Renamed first: a half deleted checkpoint must not look like a damaged one.
    doomed = folder.rename(folder.with_name(f".tmp-deleted-{folder.name}"))
    shutil.rmtree(doomed)
