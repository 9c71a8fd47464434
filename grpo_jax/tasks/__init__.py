"""Tasks by name: sources of problems with their checkers. Imports no JAX (see `loader`)."""

import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence

from grpo_jax.errors import unknown
from grpo_jax.registry import find
from grpo_jax.tasks.addition import addition
from grpo_jax.tasks.countdown import countdown
from grpo_jax.tasks.framed import framed
from grpo_jax.tasks.gsm8k import gsm8k
from grpo_jax.tasks.jsonl import jsonl
from grpo_jax.tasks.manners import manners
from grpo_jax.tasks.math import math
from grpo_jax.tasks.mixture import mixture
from grpo_jax.tasks.pairs import pairs
from grpo_jax.tasks.problem import Problem, Source, Steps, Task
from grpo_jax.tasks.programs import programs
from grpo_jax.tasks.reasoning_gym import reasoning_gym
from grpo_jax.tasks.solved import solved
from grpo_jax.tasks.svamp import svamp
from grpo_jax.tasks.word_problems import word_problems

__all__ = [
    "JUDGED_STEPS",
    "TASKS",
    "Problem",
    "Source",
    "Steps",
    "Task",
    "make_task",
    "task_options",
]

TASKS: dict[str, Callable[..., Task]] = {
    "addition": addition,
    "countdown": countdown,
    "framed": framed,
    "gsm8k": gsm8k,
    "jsonl": jsonl,
    "manners": manners,
    "math": math,
    "mixture": mixture,
    "pairs": pairs,
    "programs": programs,
    "reasoning_gym": reasoning_gym,
    "solved": solved,
    "svamp": svamp,
    "word_problems": word_problems,
}

# Tasks that judge the steps of a solution, as `problem.judges_steps` declares.
JUDGED_STEPS = tuple(name for name, make in TASKS.items() if hasattr(make, "judges_steps"))


def make_task(name: str | None = None, **options: object) -> Task:
    """The task of that name in TASKS, or of an import path, made with its options.

    ValueError for an unknown name and TypeError for an unknown option name the nearest valid one;
    TypeError for an option of the wrong type, and for one that is missing.
    """
    if name is None:
        raise TypeError(f"a task needs a 'name'; valid: {', '.join(TASKS)}")
    make = find("task", str(name), TASKS)
    parameters, known = inspect.signature(make).parameters, task_options(str(name))
    for option, value in options.items():
        if known is not None and option not in known:
            raise TypeError(f"task {name!r}: {unknown('option', option, known)}")
        if option in parameters and not _fits(value, hint := parameters[option].annotation):
            wanted = getattr(typing.get_origin(hint) or hint, "__name__", hint)
            raise TypeError(f"task {name!r}: {option}={value!r} is not of type {wanted}")
    missing = [k for k, p in parameters.items() if p.default is p.empty and p.kind != p.VAR_KEYWORD]
    if absent := [k for k in missing if k not in options]:
        raise TypeError(f"task {name!r}: needs the option {absent[0]!r}")
    task = make(**options)
    if not isinstance(task, Task):
        raise TypeError(f"task {name!r}: made a {type(task).__name__}; valid: a function of a Task")
    return task


def task_options(name: str) -> list[str] | None:
    """The names of a task's options; None where it takes any."""
    parameters = inspect.signature(find("task", name, TASKS)).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return None if free else list(parameters)


def _fits(value: object, hint: object) -> bool:
    """Whether a value is of the annotated type; the task checks what is no plain type."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(hint))
    kind = typing.get_origin(hint) or hint
    if kind is bool or kind is type(None):
        return isinstance(value, kind)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if kind is str:
        return isinstance(value, str | os.PathLike)
    if kind is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str)
    return isinstance(value, Mapping) if kind is Mapping else True
