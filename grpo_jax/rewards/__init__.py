"""Rewards: functions from text to numbers, in TRL's signature. Imports no JAX."""

from grpo_jax.rewards.evaluate import Rewarder, RewardError, Scores
from grpo_jax.rewards.registry import REWARDS, resolve

__all__ = ["REWARDS", "RewardError", "Rewarder", "Scores", "resolve"]
