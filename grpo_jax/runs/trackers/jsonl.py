"""The run's own files of JSON lines, from which it resumes."""

from collections.abc import Sequence

from grpo_jax.files import JsonMapping
from grpo_jax.runs.run import Run, append_line, truncate_after
from grpo_jax.runs.trackers.base import Metrics, Tracker


class JsonLinesTracker(Tracker):
    """Writes metrics.jsonl, eval.jsonl and completions.jsonl.

    Records of later steps than that of the restored checkpoint are dropped: their steps are run
    again, and nothing is recorded twice. So evaluate a step before its checkpoint is saved, or a
    kill in between loses it.
    """

    required = True

    def begin(
        self, run: Run, hyperparameters: JsonMapping, restored: int | None, total: int
    ) -> None:
        """Drop what is run again."""
        self._run = run
        for path in (run.metrics, run.completions, run.eval):
            truncate_after(path, -1 if restored is None else restored)

    def log(self, step: int, metrics: Metrics) -> None:
        """One line of metrics.jsonl."""
        append_line(self._run.metrics, {"step": step, **metrics})

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """One line of eval.jsonl."""
        append_line(self._run.eval, {"step": step, **metrics})

    def completions(self, step: int, samples: Sequence[Metrics]) -> None:
        """A line of completions.jsonl for each."""
        for sample in samples:
            append_line(self._run.completions, {"step": step, **sample})
