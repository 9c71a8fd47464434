"""Where a step's time goes: compilations, JAX's profiler, and FLOP utilisation."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from grpo_jax.console.progress import COMPILED, say
from grpo_jax.runs.run import writing_in

# FLOP/s of dense bfloat16 products, as the makers publish them, by how JAX's device_kind begins.
# Of those that fit, the first counts. A JAX device of TPU v2 and v3 is half a chip.
PEAK_FLOPS = {
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,
    "TPU v2": 22.5e12,
}


def peak_flops(kind: str) -> float | None:
    """FLOP/s of a device of this kind, from PEAK_FLOPS; None where that is not known."""
    return next((rate for start, rate in PEAK_FLOPS.items() if kind.startswith(start)), None)


@contextlib.contextmanager
def compilations() -> Iterator[Callable[[], dict[str, float]]]:
    """A function that gives what XLA compiled since it was last asked: how many programs, those
    found in the cache of compiled programs included, and the seconds of it."""
    seconds: list[float] = []

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            seconds.append(duration_secs)

    def lap() -> dict[str, float]:
        found = {"time/compile": sum(seconds, 0.0), "time/compilations": float(len(seconds))}
        seconds.clear()
        return found

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield lap
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


@contextlib.contextmanager
def profiler(
    folder: Path, steps: Sequence[int]
) -> Iterator[Callable[[int], contextlib.AbstractContextManager[None]]]:
    """A function that gives the block of a step to run in, which traces it where it is to be.

    steps  the first and the last to be traced; () = none

    The trace, for TensorBoard, XProf or Perfetto, is in `folder`. A run that resumes amid these
    steps traces the others.
    """
    traced: list[int] = []

    @contextlib.contextmanager
    def step(number: int) -> Iterator[None]:
        if not steps or not steps[0] <= number <= steps[1]:
            yield
            return
        if not traced:
            with writing_in(folder.parent):
                jax.profiler.start_trace(folder)
        traced.append(number)
        with jax.profiler.StepTraceAnnotation("step", step_num=number):
            yield
        if number == steps[1]:
            stop()

    def stop() -> None:
        if traced:
            with writing_in(folder.parent):
                jax.profiler.stop_trace()
            say(f"the trace of steps {traced[0]} to {traced[-1]} is in {folder}")
            traced.clear()

    try:
        yield step
    finally:
        stop()
