"""Environments by name, which answer the policy; `base.Environment` is their protocol.

A new one is a file here and a line in ENVIRONMENTS, or a file anywhere that is named by its import
path.
"""

from collections.abc import Callable

from grpo_jax.environments.base import Environment, Turn
from grpo_jax.environments.single_turn import SingleTurn
from grpo_jax.registry import find, make

__all__ = ["ENVIRONMENTS", "Environment", "Turn", "find_environment"]

ENVIRONMENTS: dict[str, Callable[[], Environment]] = {"single_turn": SingleTurn}


def find_environment(name: str) -> Callable[[], Environment]:
    """The function that makes one completion's environment; ValueError for an unknown name."""
    make("environment", name, ENVIRONMENTS, ("reset", "step"))
    return find("environment", name, ENVIRONMENTS)
