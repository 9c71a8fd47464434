"""How a run begins, and how it resumes: what its folder keeps, and what it must hold."""

import contextlib
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from ml_collections import FrozenConfigDict

from grpo_jax.errors import UsageError
from grpo_jax.files import RUN_NAMES, Json, at_home, check_writable, fingerprint, inside_run
from grpo_jax.rewards.text import Reward
from grpo_jax.runs.checkpoints import newest_position
from grpo_jax.runs.run import Run, check_run, load_record, open_run, read_steps, writing_in
from grpo_jax.runs.trackers import check_trackers
from grpo_jax.tasks import Task
from grpo_jax.tokenizers import keep_tokenizer, kept_tokenizer
from grpo_jax.training.data_check import check_data
from grpo_jax.training.experiment import Experiment, build
from grpo_jax.training.pretrained import base_sources


def reopen(
    config: FrozenConfigDict,
    workdir: Path,
    task: Task | None = None,
    functions: Mapping[str, Reward] | None = None,
) -> Experiment:
    """The experiment of a resolved config, with the tokenizer of the run that is in `workdir`.

    task       None = as config.task says
    functions  rewards that are objects, by name

    Changes nothing. UsageError where that is a run of another config, or lacks something, and for
    a tracker that there is not.
    """
    workdir = at_home(workdir)
    stands = "is a file" if workdir.is_file() else inside_run(workdir)
    if stands:
        raise UsageError(f"--workdir={workdir} {stands}; valid: a folder of its own")
    check_trackers(config.log.trackers)
    position = newest_position(workdir / "checkpoints")
    check_run(workdir, config, None, position)
    check_whole(workdir, position)
    kept = workdir / "tokenizer"
    return build(config, kept_tokenizer(kept) if kept.is_dir() else None, task, functions)


def start_run(
    ex: Experiment, workdir: Path, sources: dict[str, str] | None = None, sampled: bool = True
) -> Run:
    """Check what the task has read, and open the run; nothing is written where that is refused.

    sources  fingerprints of what the run depends on besides the files of its task, and the model
             that its adapters are on
    sampled  whether completions are, see `check_data`
    """
    workdir = at_home(workdir)
    known = ex.sources() | base_sources(ex.config) | (sources or {})
    check_run(workdir, ex.config, known, newest_position(workdir / "checkpoints"))
    check_data(ex, sampled)
    return begin_run(ex, workdir, known)


def begin_run(ex: Experiment, workdir: Path, sources: dict[str, str]) -> Run:
    """Open the run in `workdir`, and keep its tokenizer there."""
    position = newest_position(workdir / "checkpoints")
    check_whole(workdir, position)
    run = open_run(workdir, ex.config, sources, position)
    try:
        if not run.tokenizer.exists():
            keep_tokenizer(ex.tokenizer, run.tokenizer)
        with writing_in(run.checkpoints):  # which the first save would notice, hours later
            run.checkpoints.mkdir(exist_ok=True)
            check_writable(run.checkpoints)
    except Exception:
        _take_away(run)
        run.close()
        raise
    return run


@contextlib.contextmanager
def holding(run: Run) -> Iterator[None]:
    """Close the run at the end.

    After an error before anything was computed, a run that was new is taken away again, so that the
    command, once it is mended, finds no run of another config.
    """
    try:
        yield
    except Exception:
        _take_away(run)
        raise
    finally:
        run.close()


def _take_away(run: Run) -> None:
    """Take a new run away, of which nothing was computed."""
    if run.resumed or _computed(run):
        return
    for name in RUN_NAMES:  # none was there before: see `check_run`
        path = run.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if run.made and not any(run.folder.iterdir()):
        run.folder.rmdir()


def _computed(run: Run) -> bool:
    """Whether a run has a line, a checkpoint or a cold start."""
    return (
        any(run.sizes().values())
        or (run.folder / "cold_start").exists()
        or (run.checkpoints.exists() and any(run.checkpoints.iterdir()))
    )


def check_begun(run: Run) -> None:
    """Refuse to begin a run anew where it has checkpoints, none of them whole; UsageError."""
    if left := sorted(p.name for p in run.checkpoints.glob("[0-9]*")):
        raise _lost(run.folder, "a whole checkpoint is missing", f"{left[-1]} in checkpoints/")


def check_whole(folder: Path, position: Json | None) -> None:
    """Refuse the folder of a run that lacks what it must hold; UsageError names what is missing.

    position  of the newest checkpoint; None where there is none

    With a checkpoint of step n, metrics.jsonl has the steps 1 to n, each file of JSON lines at
    least the bytes that it had when that was saved, and tokenizer/ the same files. Once there is a
    line, there are checkpoints/ and tokenizer/; once the lines go beyond the first step that is
    saved, a whole checkpoint.
    """
    if not (folder / "config.json").exists():
        return
    step, sizes = (position or {}).get("step", 0), (position or {}).get("files", {})
    saved = f"the checkpoint of step {step}"
    for name, size in sizes.items():
        _present(folder, name, saved)
        if not (folder / name).is_file() or (folder / name).stat().st_size < size:
            raise _lost(folder, f"a part of {name} is missing", saved)
    steps = {record["step"] for record in read_steps(folder / "metrics.jsonl")}
    if absent := sorted(set(range(1, step + 1)) - steps):
        raise _lost(folder, f"step {absent[0]} is missing in metrics.jsonl", saved)
    if steps or position is not None or (folder / "cold_start").exists():
        _present(folder, "checkpoints", "what was computed")
        _present(folder, "tokenizer", "what was computed")
    began_with = (position or {}).get("tokenizer")
    if began_with is not None and fingerprint(folder / "tokenizer") != began_with:
        raise UsageError(
            f"{folder}: tokenizer/ is not what the run began with: its content has changed; put it "
            "back, or choose another --workdir to start anew"
        )
    last, there = max(steps, default=0), list((folder / "checkpoints").glob("[0-9]*"))
    if position is None and (there or last > _first_saved(folder)):
        beside = f"metrics.jsonl, which goes to step {last}"
        raise _lost(folder, "a whole checkpoint is missing in checkpoints/", beside)


def _first_saved(folder: Path) -> float:
    """A step by which a checkpoint was due, whatever checkpoint.every has been; inf if never."""
    record = load_record(folder)
    values = [record.get("checkpoint", {}).get("every", 0)]
    for change in record.get("changes", []):
        if change["field"] == "checkpoint.every":
            values += [change["old"]]
    return math.inf if 0 in values else max(values)


def _present(folder: Path, name: str, beside: str) -> None:
    if not (folder / name).exists():
        raise _lost(folder, f"{name} is missing", beside)


def _lost(folder: Path, what: str, beside: str) -> UsageError:
    return UsageError(
        f"{folder}: {what}, beside {beside}; put it back, or choose another --workdir to start anew"
    )
