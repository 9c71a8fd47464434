"""The critic's loss."""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.algorithms.ratios import at_least, at_most

CRITICS = ("network", "head")  # the kinds that models.critic builds


def value_loss(
    values: Float[Array, "P G T"],
    values_old: Float[Array, "P G T"],
    returns: Float[Array, "P G T"],
    mask: Bool[Array, "P G T"],
    weights: Float[Array, "P G T"],
    *,
    value_clip: float | None,
    value_coef: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Clipped value loss, a scalar that adds over micro-batches (PPO, 1707.06347).

    value_coef sum weights / 2 max((V - R)^2, (clip(V, V_old +- value_clip) - R)^2);
    `weights` from token_weights on the whole minibatch; value_clip None is off. The gradient flows
    through `values` only. The metric has the same weights.
    """
    chex.assert_rank(mask, 3)
    chex.assert_equal_shape([values, values_old, returns, mask, weights])
    new = jnp.where(mask, values, 0.0)
    old = jax.lax.stop_gradient(jnp.where(mask, values_old, 0.0))
    target = jax.lax.stop_gradient(jnp.where(mask, returns, 0.0))
    error = jnp.square(new - target)
    clipped_error = error
    if value_clip is not None:
        clipped = at_most(at_least(new, old - value_clip), old + value_clip)
        clipped_error = jnp.square(clipped - target)
    loss = 0.5 * value_coef * jnp.sum(weights * jnp.maximum(error, clipped_error))
    return loss, {"val/clipfrac": jnp.sum(weights * (clipped_error > error))}
