"""The loop that every training program shares: log, evaluate, save, stop when asked."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from grpo_jax import checkpoints
from grpo_jax.checks import UsageError
from grpo_jax.interrupts import end, importing
from grpo_jax.metrics import Logger, plot_curves
from grpo_jax.progress import COMPILED, doing, say
from grpo_jax.runs import Run
from grpo_jax.types import TrainState

Metrics = dict[str, Any]

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Step(NamedTuple):
    """What one step gives: the new state, its scalars, and samples to show."""

    state: TrainState
    metrics: Metrics
    samples: list[Metrics]
    last: bool = False  # whether the run ends here, before its steps are used up


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


def run_steps(
    run: Run,
    config: Any,
    start: tuple[int | None, TrainState],
    total: int,
    step: Callable[[TrainState, int], Step],
    position: Callable[[], Metrics],
    evaluate: Callable[[TrainState], Metrics] | None = None,
) -> TrainState:
    """Steps start + 1 .. total: run, record, evaluate and save each as the config says.

    start     the restored step (None: nothing was restored) and the state to go on from
    step      (state, number) -> Step; its `last` ends the run early
    position  where the task's iterator stands, JSON-able
    evaluate  state -> held-out metrics

    A step is evaluated before it is saved, so that a kill in between loses nothing. Raises
    Interrupted after a signal, and UsageError after too many non-finite gradients in a row.
    """
    restored, state = start
    if restored:
        say(f"going on after step {restored} of {total}")
    with (
        Logger(run, total, restored) as logger,
        stop_signals() as stopped,
        _compile_clock() as compiled,
    ):
        if restored is None and evaluate is not None:
            logger.evaluation(0, _evaluated(evaluate, state, 0))
        if restored is None and total == 0:  # what a run starts from, and nothing more
            _save(run, 0, state, position(), config)
        for number in range((restored or 0) + 1, total + 1):
            state, metrics, samples, last = step(state, number)
            total = number if last else total
            metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
            metrics["time/compile"] = compiled()  # an evaluation's goes to the step after it
            logger.step(number, metrics)
            logger.completions(number, samples)
            _check_finite(metrics, number, config.optimizer.max_bad_steps, run)
            if evaluate is not None and _due(number, config.eval.every, total):
                logger.evaluation(number, _evaluated(evaluate, state, number))
                if number < total:
                    plot_curves(run.folder)
            received = stopped()  # asked once: one that comes later waits for the next step
            if received or _due(number, config.checkpoint.every, total):
                _save(run, number, state, position(), config)
            if received:
                _leave(run, number, received)
            if last:
                break
    plot_curves(run.folder)
    return state


@contextlib.contextmanager
def _compile_clock() -> Iterator[Callable[[], float]]:
    """A function that gives the seconds that XLA compiled since it was last asked."""
    seconds = 0.0

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        nonlocal seconds
        if event == COMPILED:
            seconds += duration_secs

    def lap() -> float:
        nonlocal seconds
        passed, seconds = seconds, 0.0
        return passed

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield lap
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def _evaluated(evaluate: Callable[[TrainState], Metrics], state: TrainState, at: int) -> Metrics:
    began = time.monotonic()
    with doing(f"evaluating at step {at}"):
        metrics = evaluate(state)
    return {**metrics, "time/evaluation": time.monotonic() - began}


def _save(run: Run, number: int, state: TrainState, position: Metrics, config: Any) -> None:
    kept = state.replace(base=None)  # it is where it came from
    with doing(f"saving step {number}"):
        checkpoints.save(run.checkpoints, number, kept, position, config.checkpoint.keep)


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
