"""Weights for the gap between the policy that sampled and the learner's copy of it.

The two run the same parameters but not the same arithmetic. Both corrections are detached, [P, G,
T], and multiply the surrogate; 'Your efficient RL framework secretly brings you off-policy' (Yao et
al., 2025).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.algorithms.ratios import token


def truncate(
    logp_old: Float[Array, "P G T"],
    logp_rollout: Float[Array, "P G T"],
    mask: Bool[Array, "P G T"],
    *,
    tis_cap: float,
) -> Float[Array, "P G T"]:
    """Truncated importance sampling: min(exp(logp_old - logp_rollout), tis_cap)."""
    return jnp.minimum(_weight(logp_old, logp_rollout, mask), tis_cap)


def mask_out(
    logp_old: Float[Array, "P G T"],
    logp_rollout: Float[Array, "P G T"],
    mask: Bool[Array, "P G T"],
    *,
    tis_cap: float,
) -> Float[Array, "P G T"]:
    """Masked importance sampling: exp(logp_old - logp_rollout), or 0 above tis_cap."""
    weight = _weight(logp_old, logp_rollout, mask)
    return jnp.where(weight > tis_cap, 0.0, weight)


def _weight(
    logp_old: Float[Array, "P G T"], logp_rollout: Float[Array, "P G T"], mask: Bool[Array, "P G T"]
) -> Float[Array, "P G T"]:
    return jax.lax.stop_gradient(jnp.exp(token(logp_old, logp_rollout, mask)))


CORRECTIONS = {"truncate": truncate, "mask": mask_out}
