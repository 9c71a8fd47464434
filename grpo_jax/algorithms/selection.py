"""Which tokens the loss treats apart, decided once on the whole batch.

Every selection reads only what the rollout left (behaviour log-probs, entropies) and the
advantages, so it is made before the batch is cut into micro-batches, and the cut cannot change the
gradient. Called as `f(mask, *, <arrays>, <Algorithm's coefficients>) -> f32[P, G, T]` of ones and
zeros: the surrogate's factor, or for 'kl_cov' the extra penalty's.
"""

import chex
import jax
import jax.numpy as jnp


def top_entropy(mask: jax.Array, *, entropy: jax.Array, entropy_fraction: float) -> jax.Array:
    """1 on the `entropy_fraction` of tokens with the highest entropy (2506.01939: 0.2).

    mask bool[P, G, T], entropy f32[P, G, T] of the behaviour policy; the rest leave the surrogate.
    """
    chex.assert_equal_shape([mask, entropy])
    return _top(entropy, mask, _count(mask, entropy_fraction))


def clip_cov(
    mask: jax.Array,
    *,
    logp_rollout: jax.Array,
    advantages: jax.Array,
    rng: jax.Array,
    clip_cov_fraction: float,
    clip_cov_low: float,
    clip_cov_high: float,
) -> jax.Array:
    """0 on a random few of the tokens whose covariance lies between two bounds (2505.22617).

    cov_t = (A_t - mean A)(logp_t - mean logp), over the batch's valid tokens; at most
    `clip_cov_fraction` of all tokens leave the surrogate. mask bool[P, G, T], logp_rollout f32[P,
    G, T].
    """
    cov = covariance(mask, logp_rollout, advantages)
    candidates = mask & (cov > clip_cov_low) & (cov < clip_cov_high)
    lottery = jax.random.uniform(rng, mask.shape)
    return 1.0 - _top(lottery, candidates, _count(mask, clip_cov_fraction))


def kl_cov(
    mask: jax.Array, *, logp_rollout: jax.Array, advantages: jax.Array, kl_cov_fraction: float
) -> jax.Array:
    """1 on the `kl_cov_fraction` of tokens of highest covariance (2505.22617).

    The loss adds kl_cov_coef |logp - logp_old| there, in place of any clip: as in the paper, no
    token's ratio is clipped. mask bool[P, G, T], logp_rollout f32[P, G, T].
    """
    cov = covariance(mask, logp_rollout, advantages)
    return _top(cov, mask, _count(mask, kl_cov_fraction))


def covariance(mask: jax.Array, logp: jax.Array, advantages: jax.Array) -> jax.Array:
    """(A_t - mean A)(logp_t - mean logp) over the valid tokens, f32[P, G, T]; 0 on the others."""
    chex.assert_rank([mask, advantages], 3)
    chex.assert_equal_shape([mask, logp])
    total = jnp.maximum(mask.sum(), 1)

    def centred(x: jax.Array) -> jax.Array:
        x = jnp.where(mask, x, 0.0)
        return jnp.where(mask, x - x.sum() / total, 0.0)

    return centred(advantages) * centred(logp)


def _count(mask: jax.Array, fraction: float) -> jax.Array:
    """floor(fraction * valid tokens), at least 1; the nudge undoes float32's 0.2 * 15 < 3."""
    return jnp.maximum(jnp.floor(fraction * mask.sum() + 1e-3), 1.0)


def _top(score: jax.Array, candidates: jax.Array, count: jax.Array) -> jax.Array:
    """1.0 on the `count` highest-scoring candidates, never on more: ties go to the first."""
    flat = jnp.where(candidates, score, -jnp.inf).ravel()
    order = jnp.argsort(flat, descending=True)
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size)).reshape(score.shape)
    return (candidates & (rank < count)).astype(jnp.float32)


SELECTIONS = {f.__name__: f for f in (top_entropy, clip_cov, kl_cov)}
