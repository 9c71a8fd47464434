"""Tasks by name: sources of problems with their checkers. Imports no JAX (see `loader`)."""

import inspect
from collections.abc import Callable
from typing import Any

from grpo_jax.rewards.registry import unknown
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

__all__ = ["JUDGED_STEPS", "TASKS", "Problem", "Source", "Steps", "Task", "make_task"]

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

# Those whose `Task.steps` judges single steps; a mixture does where all its parts do.
JUDGED_STEPS = ("addition", "countdown", "gsm8k", "mixture")


def make_task(name: str, **options: Any) -> Task:
    """The task registered under `name`, made with its options.

    ValueError for an unknown name and TypeError for an unknown option name the nearest valid one.
    """
    if name not in TASKS:
        raise ValueError(unknown("task", name, TASKS))
    parameters = inspect.signature(TASKS[name]).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for option in options:
            if option not in parameters:
                raise TypeError(f"task {name!r}: {unknown('option', option, parameters)}")
    missing = [k for k, p in parameters.items() if p.default is p.empty and p.kind != p.VAR_KEYWORD]
    if absent := [k for k in missing if k not in options]:
        raise TypeError(f"task {name!r}: needs the option {absent[0]!r}")
    return TASKS[name](**options)
