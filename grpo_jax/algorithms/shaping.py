"""Rewards before they become advantages: combined, penalised for length, spread over tokens.

NaN is a reward function's None: it abstains.
"""

from collections.abc import Callable

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.algorithms.advantages import group_norm, spread_is_noise
from grpo_jax.algorithms.needs import declares, needs
from grpo_jax.types import StepRewards


def weighted_sum(parts: Float[Array, "N P G"], weights: Float[Array, " N"]) -> Float[Array, "P G"]:
    """sum_n w_n r_n; a NaN abstains."""
    total = jnp.einsum("npg,n->pg", jnp.where(jnp.isnan(parts), 0.0, parts), weights)
    return jnp.where(jnp.isnan(parts).all(0), jnp.nan, total)


@needs(group=2)
@declares(squares_parts=True)
def normalize_each(
    parts: Float[Array, "N P G"], weights: Float[Array, " N"], *, std_ddof: int, std_eps: float
) -> Float[Array, "P G"]:
    """Each reward normalised over its group, summed by weight; the sum normalised over the batch.

    GDPO, 2601.05242; follow it with the advantage `group_mean`, which leaves it as it is.
    """
    abstained = jnp.isnan(parts).all(0)
    mask = jnp.ones((*parts.shape[1:], 1), bool)
    scores = [group_norm(r, mask, std_ddof=std_ddof, std_eps=std_eps)[..., 0] for r in parts]
    total = jnp.einsum("npg,n->pg", jnp.stack(scores), weights)
    count = jnp.maximum((~abstained).sum(), 1)
    mean = total.sum(where=~abstained) / count
    square = jnp.square(total - mean).sum(where=~abstained)
    std = jnp.sqrt(square / jnp.maximum(count - std_ddof, 1))
    flat = spread_is_noise(total, ~abstained, axis=None)
    normalised = jnp.where(flat, 0.0, (total - mean) / (std + std_eps))
    return jnp.where(abstained, jnp.nan, normalised)


# One reward per completion, from those of N functions and their weights; NaN where all are NaN. One
# that squares rewards declares `squares_parts`: float32 must hold them.
COMBINATIONS: dict[str, Callable[..., Float[Array, "P G"]]] = {
    "sum": weighted_sum,
    "normalize_each": normalize_each,
}


def soft_overlong(lengths: Int[Array, "..."], max_length: int, cache: float) -> Float[Array, "..."]:
    """DAPO's length penalty, same shape as lengths (2503.14476): add it to the reward.

    0 up to max_length - cache, then linear down to -1 at max_length, and -1 beyond. `cache` is in
    tokens: Algorithm.overlong_cache * max_length.
    """
    if not 0 < cache <= max_length:
        raise ValueError(f"overlong cache must be in (0, {max_length}] tokens, got {cache}")
    return jnp.clip((max_length - cache - lengths) / cache, -1.0, 0.0)


def token_rewards(
    rewards: Float[Array, "P G"],
    mask: Bool[Array, "P G T"],
    kl: Float[Array, "P G T"] | None = None,
    beta: float = 0.0,
) -> Float[Array, "P G T"]:
    """R_t = -beta kl_t, plus the reward at the last valid token (PPO, 1707.06347).

    A NaN reward places nothing; 0 where masked.
    """
    chex.assert_rank(mask, 3)
    chex.assert_shape(rewards, mask.shape[:2])
    placed = jnp.where(jnp.arange(mask.shape[-1]) == _last(mask), rewards[..., None], 0.0)
    placed = jnp.where(jnp.isnan(placed), 0.0, placed)
    if kl is None:
        return placed
    chex.assert_equal_shape([kl, mask])
    return placed - beta * jnp.where(mask, kl, 0.0)


def with_outcome(
    steps: StepRewards, rewards: Float[Array, "P G"], mask: Bool[Array, "P G T"]
) -> StepRewards:
    """`steps` of [P, G, K] and one more, [P, G, K + 1]: the outcome, the completion's reward, is
    a step that ends with its last valid token."""
    chex.assert_equal_shape([steps.rewards, steps.ends])
    chex.assert_equal_shape_prefix([steps.rewards, rewards, mask], 2)
    return StepRewards(
        rewards=jnp.concatenate([steps.rewards, rewards[..., None]], -1),
        ends=jnp.concatenate([steps.ends, _last(mask)], -1),
    )


def _last(mask: Bool[Array, "P G T"]) -> Int[Array, "P G 1"]:
    """The last valid token; -1 where there is none."""
    return jnp.where(mask, jnp.arange(mask.shape[-1]), -1).max(-1, keepdims=True)
