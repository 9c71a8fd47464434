"""Weights & Biases: the extra `wandb`.

WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and its other variables hold; WANDB_MODE=offline writes to
the run's folder only, for `wandb sync`.
"""

import os
from collections.abc import Sequence

import wandb

from grpo_jax.console.progress import say
from grpo_jax.files import JsonMapping
from grpo_jax.runs.run import Run
from grpo_jax.runs.trackers.base import Metrics, Tracker, kept_id, run_name, scalars, table


class WandbTracker(Tracker):
    """Logs to one run of Weights & Biases, the same after every resume.

    Its x-axis is the metric "step": steps that are run again after a kill are logged again, which
    W&B's own count of steps, which only grows, would lose.
    """

    def begin(
        self, run: Run, hyperparameters: JsonMapping, restored: int | None, total: int
    ) -> None:
        """Open W&B's run with the config."""
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "grpo_jax"),
            id=kept_id(run, "wandb"),
            name=run_name(run),
            dir=run.folder,
            config={**hyperparameters},
            resume="allow",
            reinit="finish_previous",
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        say(f"wandb: {run.folder / 'wandb'}" if self._run.offline else f"wandb: {self._run.url}")

    def log(self, step: int, metrics: Metrics) -> None:
        """The scalars of a step."""
        self._run.log({"step": step, **scalars(metrics)})

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """The same, under "eval/"."""
        self.log(step, {f"eval/{name}": value for name, value in metrics.items()})

    def completions(self, step: int, samples: Sequence[Metrics]) -> None:
        """A table."""
        if samples:
            columns, rows = table(samples)
            drawn = wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
            self._run.log({"step": step, "completions": drawn})

    def finish(self) -> None:
        """Send what is left."""
        if hasattr(self, "_run"):
            self._run.finish()
