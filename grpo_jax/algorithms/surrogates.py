"""Per-token policy losses: log-weights and advantages in, [P, G, T] out.

Every surrogate is called as `f(log_ratio, advantages, logp, mask, *, <Algorithm's coefficients>)`,
on arrays [P, G, T] that are finite everywhere; what it returns at masked positions is finite and
unused. One that clips declares for the metrics where it does: `clips(log_ratio, advantages, *,
<Algorithm's coefficients>)` returns the tokens at its low and at its high clip.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.algorithms.needs import declares, needs
from grpo_jax.algorithms.ratios import at_least, at_most
from grpo_jax.types import Advantages

Clipped = tuple[Bool[Array, "P G T"], Bool[Array, "P G T"]]


def never(log_ratio: Float[Array, "P G T"], advantages: Advantages) -> Clipped:
    """No clip anywhere."""
    nowhere = jnp.zeros(log_ratio.shape, bool)
    return nowhere, nowhere


def _outside(
    log_ratio: Float[Array, "P G T"], advantages: Advantages, *, clip_low: float, clip_high: float
) -> Clipped:
    """The ratio beyond its bounds, whatever the sign of A."""
    ratio = jnp.exp(log_ratio)
    return ratio < 1.0 - clip_low, ratio > 1.0 + clip_high


def _greedy_outside(
    log_ratio: Float[Array, "P G T"], advantages: Advantages, *, clip_low: float, clip_high: float
) -> Clipped:
    """The ratio beyond the bound on the side that the sign of A makes greedy."""
    low, high = _outside(log_ratio, advantages, clip_low=clip_low, clip_high=clip_high)
    return low & (advantages < 0), high & (advantages > 0)


def _greedy_log_outside(
    log_ratio: Float[Array, "P G T"], advantages: Advantages, *, clip_low: float, clip_high: float
) -> Clipped:
    """The same of the log-ratio."""
    return (log_ratio < -clip_low) & (advantages < 0), (log_ratio > clip_high) & (advantages > 0)


@declares(clips=_greedy_outside)
def clip(
    log_ratio: Float[Array, "P G T"],
    advantages: Float[Array, "P G T"],
    logp: Float[Array, "P G T"],
    mask: Bool[Array, "P G T"],
    *,
    clip_low: float,
    clip_high: float,
    ratio_cap: float | None,
    dual_clip: float | None,
) -> Float[Array, "P G T"]:
    """Clipped surrogate (PPO, 1707.06347; asymmetric in DAPO, 2503.14476).

    -min(w A, clip(w, 1 - clip_low, 1 + clip_high) A). `ratio_cap` bounds w first (INTELLECT-2,
    2505.07291); `dual_clip` c bounds the loss of A < 0 by -c A (1912.09729). None is off.
    """
    chex.assert_equal_shape([log_ratio, advantages, mask])
    ratio = jnp.exp(log_ratio)
    clipped = at_most(at_least(ratio, 1.0 - clip_low), 1.0 + clip_high)
    if ratio_cap is not None:
        ratio = at_most(ratio, ratio_cap)
    loss = -jnp.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is not None:
        loss = jnp.where(advantages < 0, at_most(loss, -dual_clip * advantages), loss)
    return loss


@declares(clips=_outside)
def cispo(
    log_ratio: Float[Array, "P G T"],
    advantages: Float[Array, "P G T"],
    logp: Float[Array, "P G T"],
    mask: Bool[Array, "P G T"],
    *,
    clip_low: float,
    clip_high: float,
) -> Float[Array, "P G T"]:
    """Policy gradient with a clipped, detached weight (CISPO, MiniMax-M1, 2506.13585).

    -stopgrad(clip(w, 1 - clip_low, 1 + clip_high)) A logp; clip_low >= 1 leaves only the
    upper clip.
    """
    chex.assert_equal_shape([log_ratio, advantages, logp, mask])
    weight = jnp.clip(jnp.exp(log_ratio), 1.0 - clip_low, 1.0 + clip_high)
    return -jax.lax.stop_gradient(weight) * advantages * logp


def sapo(
    log_ratio: Float[Array, "P G T"],
    advantages: Float[Array, "P G T"],
    logp: Float[Array, "P G T"],
    mask: Bool[Array, "P G T"],
    *,
    sapo_tau_pos: float,
    sapo_tau_neg: float,
) -> Float[Array, "P G T"]:
    """A soft gate in place of the clip (SAPO, 2511.20347).

    -(4 / tau) sigmoid(tau (w - 1)) A, with tau = sapo_tau_pos where A > 0, else sapo_tau_neg.
    """
    chex.assert_equal_shape([log_ratio, advantages, mask])
    tau = jnp.where(advantages > 0, sapo_tau_pos, sapo_tau_neg)
    return -(4.0 / tau) * jax.nn.sigmoid(tau * (jnp.exp(log_ratio) - 1.0)) * advantages


@needs(ratio="token")
@declares(clips=_greedy_log_outside)
def gmpo(
    log_ratio: Float[Array, "P G T"],
    advantages: Float[Array, "P G T"],
    logp: Float[Array, "P G T"],
    mask: Bool[Array, "P G T"],
    *,
    clip_low: float,
    clip_high: float,
) -> Float[Array, "P G T"]:
    """Geometric mean of a completion's weights, on all its tokens (GMPO, 2507.20673).

    -A exp(mean_t c_t), where c_t is log w_t clipped to [-clip_low, clip_high] on the side that the
    sign of A makes greedy: above for A > 0, below for A < 0.
    """
    chex.assert_equal_shape([log_ratio, advantages, mask])
    upper = at_most(log_ratio, clip_high)
    lower = at_least(log_ratio, -clip_low)
    clipped = jnp.where(advantages > 0, upper, lower)
    length = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    mean = jnp.where(mask, clipped, 0.0).sum(-1, keepdims=True) / length
    return -advantages * jnp.exp(mean)


def reinforce(
    log_ratio: Float[Array, "P G T"],
    advantages: Float[Array, "P G T"],
    logp: Float[Array, "P G T"],
    mask: Bool[Array, "P G T"],
) -> Float[Array, "P G T"]:
    """-A logp: the on-policy gradient, no weight (REINFORCE; RLOO, 2402.14740)."""
    chex.assert_equal_shape([advantages, logp, mask])
    return -advantages * logp


SURROGATES = {f.__name__: f for f in (clip, cispo, sapo, gmpo, reinforce)}
