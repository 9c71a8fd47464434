"""trackio: the extra `trackio`. Runs are kept on this machine, or where TRACKIO_SPACE_ID says."""

import contextlib
import io
import os
from collections.abc import Sequence

import trackio

from grpo_jax.console.progress import say
from grpo_jax.files import JsonMapping
from grpo_jax.runs.run import Run
from grpo_jax.runs.trackers.base import Metrics, Tracker, kept_id, run_name, scalars, table


class TrackioTracker(Tracker):
    """Logs to one run of trackio, the same after every resume.

    Steps that are run again after a kill are logged again.
    """

    def begin(
        self, run: Run, hyperparameters: JsonMapping, restored: int | None, total: int
    ) -> None:
        """Open trackio's run, whose name has the kept id in it: trackio resumes by name."""
        project = os.environ.get("TRACKIO_PROJECT", "grpo_jax")
        with contextlib.redirect_stdout(io.StringIO()):  # it greets in eight lines
            self._run = trackio.init(
                project=project,
                name=f"{run_name(run)}-{kept_id(run, 'trackio')}",
                config={**hyperparameters},
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        say(f"trackio: trackio show --project {project}")

    def log(self, step: int, metrics: Metrics) -> None:
        """The scalars of a step."""
        self._run.log(scalars(metrics), step=step)

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """The same, under "eval/"."""
        self.log(step, {f"eval/{name}": value for name, value in metrics.items()})

    def completions(self, step: int, samples: Sequence[Metrics]) -> None:
        """A table."""
        if samples:
            columns, rows = table(samples)
            self._run.log({"completions": trackio.Table(columns=columns, data=rows)}, step=step)

    def finish(self) -> None:
        """Write what is left."""
        if hasattr(self, "_run"):
            with contextlib.redirect_stdout(io.StringIO()):
                trackio.finish()
