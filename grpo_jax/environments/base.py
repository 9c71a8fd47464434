"""The protocol of an environment: it opens a conversation, and answers the policy's turns."""

import dataclasses
from typing import Protocol

from grpo_jax.tasks import Problem
from grpo_jax.tasks.problem import Prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """The environment's answer to a turn of the policy.

    messages  what is appended to the conversation
    done      whether the episode is over
    reward    what the turn earned, which nothing reads yet; None = it is the rewards' to say
    """

    messages: list[dict[str, str]]
    done: bool
    reward: float | None = None


class Environment(Protocol):
    """One episode with the policy; each completion of a group has its own.

    Environments run on the host.
    """

    def reset(self, problem: Problem) -> Prompt:
        """The prompt that the policy answers, the same for all of a group."""

    def step(self, text: str) -> Turn:
        """The environment's answer to the policy's text."""
