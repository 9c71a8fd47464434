"""The loop that every training program shares: log, evaluate, save, stop when asked."""

import contextlib
import dataclasses
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from grpo_jax.console.interrupts import end, importing
from grpo_jax.console.progress import doing, say
from grpo_jax.errors import UsageError
from grpo_jax.files import Json, JsonMapping
from grpo_jax.hosts import fetch
from grpo_jax.learning.state import TrainState
from grpo_jax.runs import checkpoints
from grpo_jax.runs.curves import plot_curves
from grpo_jax.runs.run import Run
from grpo_jax.runs.trackers import make_trackers
from grpo_jax.runs.trackers.base import Tracker, Trackers
from grpo_jax.sharding import using
from grpo_jax.training.profiling import compilations, profiler
from grpo_jax.training.starting import check_begun

Metrics = dict[str, Any]

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Step(NamedTuple):
    """The result of one step: the new state, its scalars, and samples to show."""

    state: TrainState
    metrics: Metrics
    samples: list[Metrics]
    last: bool = False  # whether the run ends here, before its steps are used up


class Source(Protocol):
    """What a stage draws from; its position is kept with each checkpoint.

    The state is JSON-able except for "arrays", if any: NumPy's, by name.
    """

    def get_state(self) -> Json:
        """The position."""

    def set_state(self, state: JsonMapping) -> None:
        """Continue from a position."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A kind of training, for the loop that all kinds share.

    name      rl, sft or reward_model; kept with each checkpoint
    total     steps in all
    mesh      that its arrays live on
    like      the shapes of its state, to restore a checkpoint into
    begin     () -> the state that it starts from
    complete  state -> the state with what checkpoints leave out
    source    whose position is kept
    step      (state, number) -> Step; its `last` ends the stage early
    evaluate  state -> held-out metrics; None = never
    """

    name: str
    total: int
    mesh: Mesh
    like: TrainState
    begin: Callable[[], TrainState]
    complete: Callable[[TrainState], TrainState]
    source: Source
    step: Callable[[TrainState, int], Step]
    evaluate: Callable[[TrainState], Metrics] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepResult:
    """What is known after step `number`; the next step takes the state's arrays.

    evaluation  None where this step was not evaluated
    last        whether the stage ends here, before its steps are used up
    """

    number: int
    metrics: dict[str, float]
    samples: list[Metrics]
    evaluation: Metrics | None = None
    state: TrainState
    last: bool


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
    with using(stage.mesh):
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


class Signals(NamedTuple):
    """What became of SIGINT and SIGTERM.

    received    () -> the one that arrived, or 0
    left_alone  () -> a context in which they do what they did before
    """

    received: Callable[[], int]
    left_alone: Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def stop_signals() -> Iterator[Signals]:
    """Take note of SIGINT and SIGTERM.

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

    before: dict[int, Any] = {number: signal.getsignal(number) for number in STOPPING}
    with _handling(dict.fromkeys(STOPPING, note)):
        yield Signals(lambda: arrived, partial(_handling, before))


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

    return _handling(dict.fromkeys(STOPPING, leave))


@contextlib.contextmanager
def _handling(handlers: Mapping[int, Any]) -> Iterator[None]:
    """Handle signals so; they are only the main thread's to handle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)


def run_stage(run: Run, config: FrozenConfigDict, stage: Stage, begun: Begun) -> TrainState:
    """The state after every step that is left; raises as `steps_of` does."""
    state = begun.state
    for result in steps_of(run, config, stage, begun):
        state = result.state
    return state


def steps_of(
    run: Run,
    config: FrozenConfigDict,
    stage: Stage,
    begun: Begun,
    trackers: Sequence[Tracker] = (),
) -> Iterator[StepResult]:
    """Every step that is left: run, record, evaluate and save each as the config says.

    trackers  that record it besides those in config.log.trackers

    A step is evaluated before it is saved, so that a kill in between loses nothing. Whoever leaves
    the iterator where it is (`break`, an exception, close()) finds the last step saved. Raises
    Interrupted after a signal, and UsageError after too many non-finite gradients in a row.
    """
    restored, total = begun.restored, stage.total
    if restored:
        say(f"going on after step {restored} of {total}")
    with (
        make_trackers(config.log.trackers, trackers) as hearing,
        stop_signals() as signals,
        compilations() as compiled,
        profiler(run.folder / "profile", config.log.profile_steps) as profiled,
    ):
        with using(stage.mesh):
            hearing.begin(run, config.to_dict(), restored, total)
            _before_steps(run, config, stage, begun, hearing)
        state, saving = begun.state, 0.0
        for number in range((restored or 0) + 1, total + 1):
            with using(stage.mesh):
                with profiled(number):
                    step = stage.step(state, number)
                    metrics = {k: float(v) for k, v in fetch(step.metrics).items()}
                # What came since the step before: an evaluation's compilations, its checkpoint.
                metrics |= compiled() | {"time/checkpoint": saving}
                result = _recorded(run, config, stage, hearing, step, metrics, number)
            state, saving, save = step.state, 0.0, partial(_save, run, config, stage, result)
            received = signals.received()  # asked once: a later one waits for the next step
            is_saved = bool(received) or _due(number, config.checkpoint.every, total, result.last)
            if is_saved:
                saving = save()
            if received:
                _leave(run, number, received)
            try:
                with signals.left_alone():
                    yield result
            except BaseException:  # whoever asked goes no further, or was interrupted
                if not is_saved:
                    save()
                raise
            if result.last:
                break
    plot_curves(run.folder)


def _before_steps(
    run: Run, config: FrozenConfigDict, stage: Stage, begun: Begun, hearing: Trackers
) -> None:
    """Evaluate what a new run starts from, and save it where it has no steps."""
    if begun.restored is not None:
        return
    if stage.evaluate is not None:
        hearing.evaluation(0, _evaluated(stage.evaluate, begun.state, 0))
    if stage.total == 0:
        at = StepResult(number=0, metrics={}, samples=[], state=begun.state, last=False)
        _save(run, config, stage, at)


def _recorded(
    run: Run,
    config: FrozenConfigDict,
    stage: Stage,
    hearing: Trackers,
    step: Step,
    metrics: dict[str, float],
    number: int,
) -> StepResult:
    """Record a step, and evaluate it where that is due."""
    due = partial(_due, number, total=stage.total, last=step.last)
    hearing.log(number, metrics)
    if due(config.log.samples_every):
        hearing.completions(number, step.samples)
    _check_finite(metrics, number, config.optimizer.max_bad_steps, run)
    evaluation = None
    if stage.evaluate is not None and due(config.eval.every):
        evaluation = _evaluated(stage.evaluate, step.state, number)
        hearing.evaluation(number, evaluation)
        if number < stage.total and not step.last:  # after which they are drawn anyway
            plot_curves(run.folder)
    return StepResult(
        number=number,
        metrics=metrics,
        samples=step.samples,
        evaluation=evaluation,
        state=step.state,
        last=step.last,
    )


def _evaluated(evaluate: Callable[[TrainState], Metrics], state: TrainState, at: int) -> Metrics:
    began = time.monotonic()
    with doing(f"evaluating at step {at}"):
        metrics = evaluate(state)
    return {**metrics, "time/evaluation": time.monotonic() - began}


def _save(
    run: Run,
    config: FrozenConfigDict,
    stage: Stage,
    result: StepResult,
) -> float:
    """Save a checkpoint; the seconds that it took."""
    began = time.monotonic()
    at = {"stage": stage.name, "step": result.number, "ended": result.last}
    drawn = stage.source.get_state()
    waiting = drawn.pop("arrays", None)
    position, keep = {**drawn, **run.kept(), **at}, config.checkpoint.keep
    with doing(f"saving step {result.number}"):
        state = result.state.saved
        checkpoints.save(run.checkpoints, result.number, state, position, keep, waiting)
    return time.monotonic() - began


def _due(number: int, every: int, total: int, last: bool) -> bool:
    return last or number == total or (every > 0 and number % every == 0)


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
