"""The environment of every task with one question and one answer."""

from grpo_jax.environments.base import Turn
from grpo_jax.tasks import Problem
from grpo_jax.tasks.problem import Prompt


class SingleTurn:
    """An episode that is over after one completion, which the rewards read."""

    def reset(self, problem: Problem) -> Prompt:
        """The problem's own prompt."""
        return problem.prompt

    def step(self, text: str) -> Turn:
        """Nothing follows."""
        return Turn(messages=[], done=True)
