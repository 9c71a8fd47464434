"""Trackers by name. A new one is a file, and a line in TRACKERS."""

import importlib
from collections.abc import Iterable, Sequence

from grpo_jax.errors import UsageError, unknown
from grpo_jax.runs.trackers.base import Tracker, Trackers

# Imported only when asked for: those that need an extra bear its name.
TRACKERS = {
    "console": "grpo_jax.runs.trackers.console:ConsoleTracker",
    "jsonl": "grpo_jax.runs.trackers.jsonl:JsonLinesTracker",
    "tensorboard": "grpo_jax.runs.trackers.tensorboard:TensorBoardTracker",
    "wandb": "grpo_jax.runs.trackers.wandb:WandbTracker",
    "trackio": "grpo_jax.runs.trackers.trackio:TrackioTracker",
}
RECORDS = "jsonl"  # whose files a run resumes from
_METHODS = ("begin", "log", "evaluation", "completions", "finish")


def make_trackers(names: Iterable[str], given: Iterable[Tracker] = ()) -> Trackers:
    """New trackers of these names, and those given; UsageError as `find_tracker`."""
    made: dict[str, Tracker] = {name: find_tracker(name)() for name in names}
    for tracker in given:
        check_tracker(tracker, name := type(tracker).__name__)
        same = sum(known.split("#")[0] == name for known in made)
        made[f"{name}#{same + 1}" if same else name] = tracker
    return Trackers(made)


def check_tracker(tracker: object, name: str) -> None:
    """UsageError for an object that is no tracker."""
    missing = [m for m in _METHODS if not callable(getattr(tracker, m, None))]
    if missing:
        raise UsageError(f"trackers: {name!r} is no tracker: it lacks {', '.join(missing)}")
    if isinstance(tracker, type):
        found = tracker.__name__
        raise UsageError(f"trackers: {found} is a class; valid: an object of it, {found}()")


def check_trackers(names: Sequence[str]) -> None:
    """UsageError for names that a run cannot be recorded by, and as `find_tracker`."""
    if RECORDS not in names:
        raise UsageError(
            f"config.log.trackers: {tuple(names)!r} lacks {RECORDS!r}, whose files a run goes on "
            f"from; valid: {(RECORDS, *names)!r}"
        )
    for name in names:
        find_tracker(name)


def find_tracker(name: str) -> type[Tracker]:
    """The class that a name of TRACKERS stands for, or an import path "package.module:Tracker".

    UsageError names what there is not, and the nearest that there is, or the extra to install.
    """
    if name not in TRACKERS and ":" not in name:
        text = f'{unknown("tracker", name, TRACKERS)}; or "package.module:Tracker"'
        raise UsageError(f"config.log.trackers: {text}")
    module_name, _, class_name = TRACKERS.get(name, name).partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        if name in TRACKERS:
            raise UsageError(
                f"config.log.trackers: {name!r} is not installed: pip install 'grpo_jax[{name}]' "
                f"({error})"
            ) from error
        raise UsageError(
            f"config.log.trackers: {name!r}: cannot import {module_name!r}: {error}"
        ) from error
    found = getattr(module, class_name, None)
    if found is None:
        known = [k for k, v in vars(module).items() if isinstance(v, type) and k[0] != "_"]
        raise UsageError(f"config.log.trackers: {name!r}: {unknown('class', class_name, known)}")
    missing = [m for m in _METHODS if not callable(getattr(found, m, None))]
    if missing or not callable(found):
        what = f"lacks {', '.join(missing)}" if missing else "cannot be called"
        raise UsageError(f"config.log.trackers: {name!r} is no tracker: it {what}")
    return found
