"""Which tokens the loss treats differently, decided once on the whole batch.

Every selection reads only what the rollout left (behaviour log-probs, entropies) and the
advantages, so it is made before the batch is cut into micro-batches, and the cut cannot change the
gradient. Called as `f(mask, *, <arrays>, <Algorithm's coefficients>) -> f32[P, G, T]` of ones and
zeros, the surrogate's factor. One that declares `penalty(drift, *, <Algorithm's coefficients>)`,
drift = logp - logp_old, leaves the surrogate whole: its tokens pay that, in place of any clip.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from grpo_jax.algorithms.needs import declares, needs
from grpo_jax.types import Advantages


def top_entropy(
    mask: Bool[Array, "P G T"], *, entropy: Float[Array, "P G T"], entropy_fraction: float
) -> Float[Array, "P G T"]:
    """1 on the `entropy_fraction` of tokens with the highest entropy (2506.01939: 0.2).

    The entropy is the behaviour policy's; the rest leave the surrogate.
    """
    chex.assert_equal_shape([mask, entropy])
    return _top(entropy, mask, _count(mask, entropy_fraction))


def clip_cov(
    mask: Bool[Array, "P G T"],
    *,
    logp_rollout: Float[Array, "P G T"],
    advantages: Advantages,
    rng: Key[Array, ""],
    clip_cov_fraction: float,
    clip_cov_low: float,
    clip_cov_high: float,
) -> Float[Array, "P G T"]:
    """0 on a random few of the tokens whose covariance lies between two bounds (2505.22617).

    cov_t = (A_t - mean A)(logp_t - mean logp), over the batch's valid tokens; at most
    `clip_cov_fraction` of all tokens leave the surrogate.
    """
    cov = covariance(mask, logp_rollout, advantages)
    candidates = mask & (cov > clip_cov_low) & (cov < clip_cov_high)
    lottery = jax.random.uniform(rng, mask.shape)
    return 1.0 - _top(lottery, candidates, _count(mask, clip_cov_fraction))


def distance(drift: Float[Array, "P G T"], *, kl_cov_coef: float) -> Float[Array, "P G T"]:
    """kl_cov_coef |drift|, without a gradient where drift is 0: that of jnp.abs is 1 there."""
    return kl_cov_coef * drift * jax.lax.stop_gradient(jnp.sign(drift))


@needs(ratio_cap=None, dual_clip=None)
@declares(penalty=distance)
def kl_cov(
    mask: Bool[Array, "P G T"],
    *,
    logp_rollout: Float[Array, "P G T"],
    advantages: Advantages,
    kl_cov_fraction: float,
) -> Float[Array, "P G T"]:
    """1 on the `kl_cov_fraction` of tokens of highest covariance (2505.22617).

    The loss adds kl_cov_coef |logp - logp_old| there; as in the paper, no token's ratio is clipped.
    """
    cov = covariance(mask, logp_rollout, advantages)
    return _top(cov, mask, _count(mask, kl_cov_fraction))


def covariance(
    mask: Bool[Array, "P G T"], logp: Float[Array, "P G T"], advantages: Advantages
) -> Float[Array, "P G T"]:
    """(A_t - mean A)(logp_t - mean logp) over the valid tokens; 0 on the others."""
    chex.assert_rank([mask, advantages], 3)
    chex.assert_equal_shape([mask, logp])
    total = jnp.maximum(mask.sum(), 1)

    def centred(x: Float[Array, "P G T"]) -> Float[Array, "P G T"]:
        x = jnp.where(mask, x, 0.0)
        return jnp.where(mask, x - x.sum() / total, 0.0)

    return centred(advantages) * centred(logp)


def _count(mask: Bool[Array, "P G T"], fraction: float) -> Float[Array, ""]:
    """floor(fraction * valid tokens), at least 1; the nudge undoes float32's 0.2 * 15 < 3."""
    return jnp.maximum(jnp.floor(fraction * mask.sum() + 1e-3), 1.0)


def _top(
    score: Float[Array, "P G T"], candidates: Bool[Array, "P G T"], count: Float[Array, ""]
) -> Float[Array, "P G T"]:
    """1.0 on the `count` highest candidates, never on more: ties go to the first."""
    flat = jnp.where(candidates, score, -jnp.inf).ravel()
    order = jnp.argsort(flat, descending=True)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size)).reshape(score.shape)
    return (candidates & (rank < count)).astype(jnp.float32)


SELECTIONS = {f.__name__: f for f in (top_entropy, clip_cov, kl_cov)}
