"""The protocol of a tracker, which records a run, and a composite of several."""

import contextlib
import json
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from grpo_jax.errors import one_line
from grpo_jax.files import TRACKER_IDS, JsonMapping, read_object
from grpo_jax.runs.run import Run, write_atomically

Metrics = Mapping[str, Any]


class Tracker(Protocol):
    """Records a run somewhere. A class that inherits this one may leave methods out.

    A tracker may have an attribute `required`: where it is True, its failure ends the run.
    """

    def begin(
        self, run: Run, hyperparameters: JsonMapping, restored: int | None, total: int
    ) -> None:
        """A run begins, or is resumed.

        run              its folder
        hyperparameters  the resolved config, nested
        restored         step of the restored checkpoint; later ones are run again; None = none
        total            steps in all
        """

    def log(self, step: int, metrics: Metrics) -> None:
        """The scalars of one step."""

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """The scalars of one evaluation, by their names in eval.jsonl."""

    def completions(self, step: int, samples: Sequence[Metrics]) -> None:
        """Sampled completions: "prompt", "completion", "rewards" by name, "advantage" of each."""

    def finish(self) -> None:
        """Nothing more comes, whether the run is done, was stopped or failed."""


class Trackers:
    """Several trackers as one; use it in a `with` block, after which all are finished.

    One that fails is reported on stderr, once, and the run goes on: without it where it could not
    begin. Only a tracker that is `required` ends the run.
    """

    def __init__(self, trackers: Mapping[str, Tracker]):
        """Trackers by the names that a report calls them."""
        self._trackers = dict(trackers)
        self._reported: set[str] = set()

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as all_finish:  # whichever of them raises
            for name in reversed(self._trackers):
                all_finish.callback(self._call, name, "finish")

    def begin(
        self, run: Run, hyperparameters: JsonMapping, restored: int | None, total: int
    ) -> None:
        """Begin each."""
        for name in list(self._trackers):
            if not self._call(name, "begin", run, hyperparameters, restored, total):
                del self._trackers[name]

    def log(self, step: int, metrics: Metrics) -> None:
        """Give each the scalars of a step."""
        self._each("log", step, metrics)

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """Give each those of an evaluation."""
        self._each("evaluation", step, metrics)

    def completions(self, step: int, samples: Sequence[Metrics]) -> None:
        """Give each sampled completions."""
        self._each("completions", step, samples)

    def _each(self, method: str, *args: Any) -> None:
        for name in self._trackers:
            self._call(name, method, *args)

    def _call(self, name: str, method: str, *args: Any) -> bool:
        """Whether it went well."""
        tracker = self._trackers[name]
        try:
            getattr(tracker, method)(*args)
        except Exception as error:
            if getattr(tracker, "required", False):
                raise
            if name not in self._reported:
                self._reported.add(name)
                why = f"{type(error).__name__}: {one_line(error)}"
                print(
                    f"warning: tracker {name!r} failed ({method}), and the run goes on: {why}",
                    file=sys.stderr,
                )
            return False
        return True


def scalars(metrics: Metrics) -> dict[str, float]:
    """Those of the metrics that are numbers."""
    return {name: float(value) for name, value in metrics.items() if is_scalar(value)}


def is_scalar(value: npt.ArrayLike | None) -> bool:
    """Whether a metric is a number, or an array of one."""
    return value is not None and not isinstance(value, str) and np.ndim(value) == 0


class Table(NamedTuple):
    """The names of columns, and rows of their values."""

    columns: list[str]
    rows: list[list[str | float | None]]


def table(samples: Sequence[Metrics]) -> Table:
    """The names of the columns of sampled completions, and the rows."""
    names = list(dict.fromkeys(name for sample in samples for name in sample["rewards"]))
    rows = [
        [
            *(sample["prompt"], sample["completion"]),
            *(sample["rewards"].get(name) for name in names),
            sample["advantage"],
        ]
        for sample in samples
    ]
    return Table(["prompt", "completion", *names, "advantage"], rows)


def kept_id(run: Run, tracker: str) -> str:
    """The run's id at a tracker, made once and kept in the run's folder."""
    path = run.folder / TRACKER_IDS
    ids = read_object(path) if path.exists() else {}
    if tracker not in ids:
        ids[tracker] = uuid.uuid4().hex[:12]
        write_atomically(path, (json.dumps(ids) + "\n").encode())
    return ids[tracker]


def run_name(run: Run) -> str:
    """The run's name for people: its folder's; a cold start's follows that of its run."""
    folder = run.folder.absolute()
    nested = (folder.parent / "config.json").exists()
    return f"{folder.parent.name}-{folder.name}" if nested else folder.name
