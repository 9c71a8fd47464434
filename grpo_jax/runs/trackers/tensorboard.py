"""TensorBoard's events, in the run's folder."""

import math
import time

from grpo_jax.files import JsonMapping
from grpo_jax.runs.run import Run, writing_in
from grpo_jax.runs.trackers.base import Metrics, Tracker, scalars
from grpo_jax.runs.trackers.events import Event, EventsWriter, SessionLog, Summary


class TensorBoardTracker(Tracker):
    """Writes a file of events at each start, on the disk after each step."""

    required = True  # a full disk is the run's as well

    def begin(
        self, run: Run, hyperparameters: JsonMapping, restored: int | None, total: int
    ) -> None:
        """Start a file; later steps than the restored one of earlier files are void.

        Written here and now, not by tensorboardX's SummaryWriter, whose thread loses what it has
        queued when the process is killed, and blocks the process for good once the disk is full.
        """
        self._folder = run.tensorboard
        with writing_in(self._folder):
            self._folder.mkdir(exist_ok=True)
            # Two starts within one second would otherwise share a name, the second over the first.
            self._events = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
            if run.resumed:
                first = 0 if restored is None else restored + 1
                restart = SessionLog(status=SessionLog.START)
                self._write(Event(wall_time=time.time(), step=first, session_log=restart))
            self._events.flush()

    def log(self, step: int, metrics: Metrics) -> None:
        """The numbers that are finite."""
        summary = Summary(
            value=[
                Summary.Value(tag=name, simple_value=value)
                for name, value in scalars(metrics).items()
                if math.isfinite(value)
            ]
        )
        with writing_in(self._folder):
            self._write(Event(wall_time=time.time(), step=step, summary=summary))
            self._events.flush()

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """The same, under "eval/"."""
        self.log(step, {f"eval/{name}": value for name, value in metrics.items()})

    def finish(self) -> None:
        """Close the file."""
        if hasattr(self, "_events"):
            with writing_in(self._folder):
                self._events.close()

    def _write(self, event: Event) -> None:
        self._events.write_event(event)
