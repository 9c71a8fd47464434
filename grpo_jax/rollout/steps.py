"""Rewards of single steps: judged in a completion's text, and placed at its tokens."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from grpo_jax.errors import UsageError
from grpo_jax.rewards.turn import written
from grpo_jax.rollout.collect import Collected
from grpo_jax.tasks import Steps, Task
from grpo_jax.tokenizers import TextTokenizer, bucket, end_tokens
from grpo_jax.types import StepRewards, on_host

MULTIPLE = 8  # of K, so that nearby numbers of steps share one compiled program


def grade_steps(
    task: Task,
    problems: Sequence[Any],
    completions: Sequence[Sequence[str]],
    prefill: Callable[[Any], str] = written,
) -> list[list[Steps]]:
    """The steps of completions [P][G], as the task judges them in whole turns.

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


def step_rewards(tokenizer: TextTokenizer, rollout: Collected) -> StepRewards | None:
    """The rollout's steps, each at the token that its last character is of; None without any."""
    if rollout.steps is None:
        return None
    tokens, mask = (np.asarray(x) for x in (rollout.rollouts.tokens, rollout.rollouts.mask))
    most = max(len(steps) for group in rollout.steps for steps in group)
    shape = (*mask.shape[:2], bucket(most, MULTIPLE))
    rewards, ends = np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
    for p, g in np.ndindex(mask.shape[:2]):
        steps, kept = rollout.steps[p][g], np.flatnonzero(mask[p, g])
        ids = tokens[p, g, kept].tolist()
        rewards[p, g, : len(steps)] = [reward for _, reward in steps]
        ends[p, g, : len(steps)] = kept[end_tokens(tokenizer, ids, [end for end, _ in steps])]
    return StepRewards(rewards=on_host(rewards), ends=on_host(ends))
