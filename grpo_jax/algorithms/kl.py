"""Per-token estimates of KL(policy || reference) from only the sampled token.

Schulman, "Approximating KL divergence" (2020): with d = logp_ref - logp, k1 = -d is unbiased, k2 =
d^2 / 2 has the right gradient, k3 = exp(d) - d - 1 is unbiased and never negative.
"""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.algorithms.ratios import clamp, masked_difference


def k1(
    logp: Float[Array, "P G T"], logp_ref: Float[Array, "P G T"], mask: Bool[Array, "P G T"]
) -> Float[Array, "P G T"]:
    """logp - logp_ref.

    For the reward (PPO, 1707.06347). As a loss its gradient is that of logp, zero on average.
    """
    return masked_difference(logp, logp_ref, mask)


def k2(
    logp: Float[Array, "P G T"], logp_ref: Float[Array, "P G T"], mask: Bool[Array, "P G T"]
) -> Float[Array, "P G T"]:
    """(logp - logp_ref)^2 / 2 (REINFORCE++, 2501.03262)."""
    return 0.5 * jnp.square(masked_difference(logp, logp_ref, mask))


def k3(
    logp: Float[Array, "P G T"], logp_ref: Float[Array, "P G T"], mask: Bool[Array, "P G T"]
) -> Float[Array, "P G T"]:
    """exp(d) - d - 1 with d = logp_ref - logp (GRPO, 2402.03300).

    d is bounded above, where exp(d) would overflow; below, the value is -d - 1 and its gradient 1.
    """
    difference = clamp(masked_difference(logp_ref, logp, mask))
    return jnp.exp(difference) - difference - 1.0


def importance_weighted(
    kl: Float[Array, "P G T"], log_ratio: Float[Array, "P G T"]
) -> Float[Array, "P G T"]:
    """w_t kl_t, with gradient through w_t (DeepSeek-V3.2, 2512.02556).

    Tokens come from the old policy; the weight makes the estimate, and its gradient, the policy's
    own: with k3 and w = 1 the gradient is exactly that of k2.
    """
    chex.assert_equal_shape([kl, log_ratio])
    return jnp.exp(clamp(log_ratio)) * kl


KLS = {f.__name__: f for f in (k1, k2, k3)}
