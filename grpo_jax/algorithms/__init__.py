"""GRPO and its relatives as a small algebra: jax.numpy in, jax.numpy out."""

from grpo_jax.algorithms.advantages import ADVANTAGES
from grpo_jax.algorithms.aggregation import AGGREGATIONS, drop_truncated, token_share, token_weights
from grpo_jax.algorithms.algorithm import Algorithm, needs_steps, squares_parts, validate
from grpo_jax.algorithms.corrections import CORRECTIONS
from grpo_jax.algorithms.kl import KLS
from grpo_jax.algorithms.loss import (
    combine_rewards,
    compute_advantages,
    compute_returns,
    loss_weights,
    policy_loss,
    reward_kl,
    rollout_correction,
    select_tokens,
)
from grpo_jax.algorithms.needs import Needs, declares, needs, needs_of
from grpo_jax.algorithms.presets import PRESETS
from grpo_jax.algorithms.ratios import RATIOS
from grpo_jax.algorithms.selection import SELECTIONS
from grpo_jax.algorithms.shaping import soft_overlong, token_rewards
from grpo_jax.algorithms.surrogates import SURROGATES
from grpo_jax.algorithms.values import value_loss

__all__ = [
    "ADVANTAGES",
    "AGGREGATIONS",
    "CORRECTIONS",
    "KLS",
    "PRESETS",
    "RATIOS",
    "SELECTIONS",
    "SURROGATES",
    "Algorithm",
    "Needs",
    "combine_rewards",
    "compute_advantages",
    "compute_returns",
    "declares",
    "drop_truncated",
    "loss_weights",
    "needs",
    "needs_of",
    "needs_steps",
    "policy_loss",
    "reward_kl",
    "rollout_correction",
    "select_tokens",
    "soft_overlong",
    "squares_parts",
    "token_rewards",
    "token_share",
    "token_weights",
    "validate",
    "value_loss",
]
