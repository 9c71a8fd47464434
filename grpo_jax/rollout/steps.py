"""Rewards of the single steps of a solution, as a task judges them in a completion's text."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from grpo_jax.errors import UsageError
from grpo_jax.rewards.turn import Prompt, written
from grpo_jax.tasks import Problem, Steps, Task


def grade_steps(
    task: Task,
    problems: Sequence[Problem],
    completions: Sequence[Sequence[str]],
    prefill: Callable[[Prompt], str] = written,
) -> list[list[Steps]]:
    """The steps of the solutions in completions [P][G], as the task judges them in whole turns.

    prefill  what a prompt holds of the turn, whose own steps are left out (`rewards.turn`)

    UsageError, naming the completion, where a step ends outside of it or its reward is no number.
    """
    return [
        [_judged(task, problem, prefill(problem.prompt), text) for text in group]
        for problem, group in zip(problems, completions, strict=True)
    ]


def _judged(task: Task, problem: Any, before: str, text: str) -> Steps:
    assert task.steps is not None
    steps = [(end - len(before), reward) for end, reward in task.steps(problem, before + text)]
    for end, reward in steps:
        if not (-len(before) < end <= len(text) and math.isfinite(reward)):
            raise UsageError(
                f"task {task.name!r} judged a step ({end!r}, {reward!r}); valid: an end of 1 to "
                f"{len(text)} characters and a finite reward; completion: {text!r}"
            )
    return [step for step in steps if step[0] > 0]
