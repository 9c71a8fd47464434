"""Importance weights between the policy and an earlier version of it, as logarithms.

Logarithms, because a surrogate may clip there (GMPO) and because a difference of log-probs is exact
where its exponential overflows. Every ratio is safe to exponentiate: none exceeds LOG_RATIO_MAX.
"""

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

# exp(20) = 4.9e8 keeps losses and gradients finite in float32; no healthy ratio comes near it.
LOG_RATIO_MAX = 20.0


def masked_difference(
    logp: Float[Array, "P G T"], other: Float[Array, "P G T"], mask: Bool[Array, "P G T"]
) -> Float[Array, "P G T"]:
    """logp - other where mask holds, else 0.

    The choice comes before any exponential, so that garbage at masked positions (infinities, NaN)
    reaches neither a value nor a gradient.
    """
    chex.assert_rank(mask, 3)
    chex.assert_equal_shape([logp, other, mask])
    return jnp.where(mask, logp - other, 0.0)


def clamp(log_ratio: Float[Array, "..."]) -> Float[Array, "..."]:
    """Bounds log-ratios by LOG_RATIO_MAX, any shape, so that their exponential is finite.

    From above only: exp(-1000) is 0, which is right, and no value or gradient is lost there.
    """
    return at_most(log_ratio, LOG_RATIO_MAX)


def at_most(x: Float[Array, "..."], bound: ArrayLike) -> Float[Array, "..."]:
    """min(x, bound), with the whole gradient of x at x = bound, where jnp.minimum gives half."""
    return jnp.where(x > bound, bound, x)


def at_least(x: Float[Array, "..."], bound: ArrayLike) -> Float[Array, "..."]:
    """max(x, bound), with the whole gradient of x at x = bound, where jnp.maximum gives half."""
    return jnp.where(x < bound, bound, x)


def token(
    logp: Float[Array, "P G T"], logp_old: Float[Array, "P G T"], mask: Bool[Array, "P G T"]
) -> Float[Array, "P G T"]:
    """One log-weight per token: log w_t = logp_t - logp_old_t (PPO, 1707.06347)."""
    return clamp(masked_difference(logp, logp_old, mask))


def sequence(
    logp: Float[Array, "P G T"], logp_old: Float[Array, "P G T"], mask: Bool[Array, "P G T"]
) -> Float[Array, "P G T"]:
    """One log-weight per completion, on all its tokens (GSPO, 2507.18071).

    log s_i = mean over valid t of (logp_t - logp_old_t).
    """
    difference = masked_difference(logp, logp_old, mask)
    length = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    mean = difference.sum(-1, keepdims=True) / length
    return jnp.broadcast_to(clamp(mean), mask.shape)


def gspo_token(
    logp: Float[Array, "P G T"], logp_old: Float[Array, "P G T"], mask: Bool[Array, "P G T"]
) -> Float[Array, "P G T"]:
    """The sequence's value with each token's own gradient (GSPO-token, 2507.18071).

    log s_it = stopgrad(log s_i) + logp_t - stopgrad(logp_t).
    """
    value = jax.lax.stop_gradient(sequence(logp, logp_old, mask))
    return value + masked_difference(logp, jax.lax.stop_gradient(logp), mask)


RATIOS = {f.__name__: f for f in (token, sequence, gspo_token)}
