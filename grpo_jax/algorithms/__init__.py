"""GRPO-family algorithms as a small algebra: jax.numpy in, jax.numpy out."""

from grpo_jax.algorithms.advantages import ADVANTAGES, GROUP_RELATIVE
from grpo_jax.algorithms.aggregation import AGGREGATIONS, drop_truncated, token_weights
from grpo_jax.algorithms.algorithm import Algorithm, needs_steps, validate
from grpo_jax.algorithms.corrections import CORRECTIONS
from grpo_jax.algorithms.kl import KLS
from grpo_jax.algorithms.loss import (
    compute_advantages,
    compute_returns,
    policy_loss,
    rollout_correction,
    select_tokens,
)
from grpo_jax.algorithms.presets import PRESETS
from grpo_jax.algorithms.ratios import RATIOS
from grpo_jax.algorithms.selection import SELECTIONS
from grpo_jax.algorithms.shaping import combine_rewards, soft_overlong, token_rewards
from grpo_jax.algorithms.surrogates import SURROGATES
from grpo_jax.algorithms.values import value_loss

__all__ = [
    "ADVANTAGES",
    "AGGREGATIONS",
    "CORRECTIONS",
    "GROUP_RELATIVE",
    "KLS",
    "PRESETS",
    "RATIOS",
    "SELECTIONS",
    "SURROGATES",
    "Algorithm",
    "combine_rewards",
    "compute_advantages",
    "compute_returns",
    "drop_truncated",
    "needs_steps",
    "policy_loss",
    "rollout_correction",
    "select_tokens",
    "soft_overlong",
    "token_rewards",
    "token_weights",
    "validate",
    "value_loss",
]
