"""The loop that every training program shares: log, evaluate, save, stop when asked."""

import contextlib
import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from ml_collections import FrozenConfigDict

from grpo_jax.console.interrupts import end, importing
from grpo_jax.console.progress import doing, say
from grpo_jax.errors import UsageError
from grpo_jax.hosts import fetch
from grpo_jax.learning.state import TrainState
from grpo_jax.runs import checkpoints
from grpo_jax.runs.curves import plot_curves
from grpo_jax.runs.run import Run
from grpo_jax.runs.trackers import make_trackers
from grpo_jax.training.profiling import compilations, profiler
from grpo_jax.training.starting import check_begun

Metrics = dict[str, Any]

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Step(NamedTuple):
    """What one step gives: the new state, its scalars, and samples to show."""

    state: TrainState
    metrics: Metrics
    samples: list[Metrics]
    last: bool = False  # whether the run ends here, before its steps are used up


class Source(Protocol):
    """What a stage draws from: where it stands is kept with each checkpoint.

    The state is JSON-able but for "arrays", if any: NumPy's, by name.
    """

    def get_state(self) -> dict[str, Any]:
        """The position."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a position."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A kind of training, for the loop that all kinds share.

    name      rl, sft or reward_model; kept with each checkpoint
    total     steps in all
    like      the shapes of its state, to restore a checkpoint into
    begin     () -> the state that it starts from
    complete  state -> the state with what checkpoints leave out
    source    whose position is kept
    step      (state, number) -> Step; its `last` ends the stage early
    evaluate  state -> held-out metrics; None = never
    """

    name: str
    total: int
    like: TrainState
    begin: Callable[[], TrainState]
    complete: Callable[[TrainState], TrainState]
    source: Source
    step: Callable[[TrainState, int], Step]
    evaluate: Callable[[TrainState], Metrics] | None = None


class Begun(NamedTuple):
    """Where a stage stands as its program starts: the restored step, or None, and the state.

    done  whether nothing of it is left to do
    """

    restored: int | None
    state: TrainState
    done: bool


def begin_or_resume(run: Run, stage: Stage) -> Begun:
    """The state of the newest checkpoint, or that which the stage starts from.

    UsageError where the run has checkpoints, and none is whole.
    """
    found = checkpoints.restore_latest(run.checkpoints, stage.like.saved)
    if found is None:
        check_begun(run)
        return Begun(None, stage.begin(), False)
    state, position, waiting = found
    stage.source.set_state(position | {"arrays": waiting})
    done = position["step"]
    return Begun(done, stage.complete(state), position["ended"] or done == stage.total)


class Interrupted(SystemExit):
    """The run was asked to stop, and leaves with the signal's exit status."""


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """A function that gives the signal (SIGINT, SIGTERM) that arrived, or 0.

    The first one lets the step end; a second one ends the process as any other's: an exception in
    the middle of a compilation or of a checkpoint would wait for it, for minutes.
    """
    arrived = 0

    def note(number, frame):
        nonlocal arrived
        arrived = number
        print("\nstopping after this step (again to stop at once) ...", file=sys.stderr)
        for each in STOPPING:
            signal.signal(each, signal.SIG_DFL)

    with _handling(note):
        yield lambda: arrived


def leaving_on_signals() -> contextlib.AbstractContextManager[None]:
    """Leave with a message on SIGINT or SIGTERM: for what comes before the steps and after."""
    said = False

    def leave(number, frame):
        nonlocal said
        if not said:  # it comes again where the exception was swallowed
            said = True
            print(
                "\ninterrupted; run the same command again to go on from the last checkpoint",
                file=sys.stderr,
                flush=True,
            )
        if importing(frame):
            end(128 + number)
        raise Interrupted(128 + number)

    return _handling(leave)


@contextlib.contextmanager
def _handling(handler: Callable) -> Iterator[None]:
    old = {s: signal.signal(s, handler) for s in STOPPING}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def run_stage(run: Run, config: FrozenConfigDict, stage: Stage, begun: Begun) -> TrainState:
    """Every step that is left: run, record, evaluate and save each as the config says.

    A step is evaluated before it is saved, so that a kill in between loses nothing. Raises
    Interrupted after a signal, and UsageError after too many non-finite gradients in a row.
    """
    restored, state, total = begun.restored, begun.state, stage.total
    saving, folder = 0.0, run.folder
    if restored:
        say(f"going on after step {restored} of {total}")
    with (
        make_trackers(config.log.trackers) as trackers,
        stop_signals() as stopped,
        compilations() as compiled,
        profiler(folder / "profile", config.log.profile_steps) as profiled,
    ):
        trackers.begin(run, config.to_dict(), restored, total)
        if restored is None and stage.evaluate is not None:
            trackers.evaluation(0, _evaluated(stage.evaluate, state, 0))
        if restored is None and total == 0:  # what a run starts from, and nothing more
            _save(run, config, stage, state, 0, ended=False)
        for number in range((restored or 0) + 1, total + 1):
            with profiled(number):
                state, metrics, samples, last = stage.step(state, number)
                metrics = {k: float(v) for k, v in fetch(metrics).items()}
            total = number if last else total
            # What came since the step before: an evaluation's compilations, and its checkpoint.
            metrics |= compiled() | {"time/checkpoint": saving}
            trackers.log(number, metrics)
            if _due(number, config.log.samples_every, total):
                trackers.completions(number, samples)
            _check_finite(metrics, number, config.optimizer.max_bad_steps, run)
            if stage.evaluate is not None and _due(number, config.eval.every, total):
                trackers.evaluation(number, _evaluated(stage.evaluate, state, number))
                if number < total:
                    plot_curves(folder)
            received, saving = stopped(), 0.0  # asked once: a later one waits for the next step
            if received or _due(number, config.checkpoint.every, total):
                saving = _save(run, config, stage, state, number, ended=last)
            if received:
                _leave(run, number, received)
            if last:
                break
    plot_curves(folder)
    return state


def _evaluated(evaluate: Callable[[TrainState], Metrics], state: TrainState, at: int) -> Metrics:
    began = time.monotonic()
    with doing(f"evaluating at step {at}"):
        metrics = evaluate(state)
    return {**metrics, "time/evaluation": time.monotonic() - began}


def _save(
    run: Run,
    config: FrozenConfigDict,
    stage: Stage,
    state: TrainState,
    number: int,
    ended: bool,
) -> float:
    """Save a checkpoint; the seconds that it took."""
    began = time.monotonic()
    at = {"stage": stage.name, "step": number, "ended": ended}
    drawn = stage.source.get_state()
    waiting = drawn.pop("arrays", None)
    position, keep = {**drawn, **run.kept(), **at}, config.checkpoint.keep
    with doing(f"saving step {number}"):
        checkpoints.save(run.checkpoints, number, state.saved, position, keep, waiting)
    return time.monotonic() - began


def _due(number: int, every: int, total: int) -> bool:
    return number == total or (every > 0 and number % every == 0)


def _check_finite(metrics: Metrics, number: int, limit: int, run: Run) -> None:
    if metrics["skipped_in_a_row"] >= limit:
        raise UsageError(
            f"step {number}: the gradient was not finite {limit} times in a row "
            f"(optimizer.max_bad_steps={limit}); its updates were skipped. Lower "
            f"optimizer.learning_rate or inspect {run.metrics}"
        )


def _leave(run: Run, number: int, received: int) -> None:
    print(
        f"interrupted after step {number}, which is saved in {run.folder}; "
        "run the same command again to go on",
        file=sys.stderr,
    )
    raise Interrupted(128 + received)
