"""Advantages: how much better than expected each completion, or each of its tokens, was.

Every one is called as `f(rewards, mask, *, <arrays it names>, <Algorithm's coefficients>)`, with
rewards f32[P, G] and mask bool[P, G, T], and returns f32[P, G, 1] or f32[P, G, T]. A NaN reward
abstains: that completion enters no statistic and has advantage exactly 0; so has the last one left
of a group, where the advantage is group-relative.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.algorithms.needs import needs
from grpo_jax.types import Advantages


def spread_is_noise(
    x: Float[Array, "..."], where: Bool[Array, "..."], axis: int | None = -1
) -> Bool[Array, "..."]:
    """Whether x varies only by float rounding over axis (kept, size 1), where `where` holds.

    Dividing such a spread by a standard deviation of the same size would turn noise into signal.
    """
    high = jnp.max(x, axis, keepdims=True, where=where, initial=-jnp.inf)
    low = jnp.min(x, axis, keepdims=True, where=where, initial=jnp.inf)
    scale = jnp.max(jnp.abs(x), axis, keepdims=True, where=where, initial=0.0)
    return high - low <= 8 * jnp.finfo(jnp.float32).eps * scale


@needs(group=2)
def group_norm(
    rewards: Float[Array, "P G"], mask: Bool[Array, "P G T"], *, std_ddof: int, std_eps: float
) -> Float[Array, "P G 1"]:
    """(r_i - mean) / (std + std_eps) over the group (GRPO, 2402.03300).

    A group without spread gives exactly 0.
    """
    _check(rewards, mask)
    centred, count = _centred(rewards)
    std = jnp.sqrt(jnp.square(centred).sum(-1, keepdims=True) / jnp.maximum(count - std_ddof, 1))
    # Where std is 0 so is the numerator; the guard only keeps std_eps = 0 from dividing 0 by 0.
    return (centred / jnp.where(std > 0, std + std_eps, 1.0))[..., None]


@needs(group=2)
def group_mean(rewards: Float[Array, "P G"], mask: Bool[Array, "P G T"]) -> Float[Array, "P G 1"]:
    """r_i - mean over the group (Dr. GRPO, 2503.20783)."""
    _check(rewards, mask)
    return _centred(rewards)[0][..., None]


@needs(group=2)
def leave_one_out(
    rewards: Float[Array, "P G"], mask: Bool[Array, "P G T"]
) -> Float[Array, "P G 1"]:
    """r_i - mean of the other G - 1 = (r_i - mean) G / (G - 1) (RLOO, 2402.14740)."""
    _check(rewards, mask)
    centred, count = _centred(rewards)
    return (centred * count / jnp.maximum(count - 1, 1))[..., None]


@needs(group=2)
def batch_norm(
    rewards: Float[Array, "P G"], mask: Bool[Array, "P G T"], *, std_ddof: int, std_eps: float
) -> Float[Array, "P G 1"]:
    """(r_i - group mean) / (std over the batch's rewards + std_eps) (2508.08221)."""
    _check(rewards, mask)
    centred, _ = _centred(rewards)
    valid = ~jnp.isnan(rewards)
    count = valid.sum()
    mean = rewards.sum(where=valid) / jnp.maximum(count, 1)
    square = jnp.square(rewards - mean).sum(where=valid)
    std = jnp.sqrt(square / jnp.maximum(count - std_ddof, 1))
    return (centred / jnp.where(std > 0, std + std_eps, 1.0))[..., None]


@needs(group=2)
def length_weighted(
    rewards: Float[Array, "P G"], mask: Bool[Array, "P G T"]
) -> Float[Array, "P G 1"]:
    """r_i - sum_j len_j r_j / sum_j len_j over the group (OPO, 2505.23585)."""
    _check(rewards, mask)
    valid, active, rewards = _active(rewards)
    length = jnp.where(valid, mask.sum(-1), 0)
    total = jnp.maximum(length.sum(-1, keepdims=True), 1)
    baseline = (length * rewards).sum(-1, keepdims=True) / total
    return jnp.where(active, rewards - baseline, 0.0)[..., None]


@needs(group=1)
def global_whiten(
    rewards: Float[Array, "P G"],
    mask: Bool[Array, "P G T"],
    *,
    token_rewards: Float[Array, "P G T"],
    gamma: float,
) -> Float[Array, "P G T"]:
    """Return-to-go, whitened over the batch's tokens (REINFORCE++, 2501.03262).

    G_t = R_t + gamma G_{t+1}, over token_rewards; masked tokens are skipped over.
    """
    _check(rewards, mask)
    chex.assert_equal_shape([token_rewards, mask])
    returns = discounted_sum(token_rewards, mask, gamma)
    return whiten(returns, mask & ~jnp.isnan(rewards)[..., None])


@needs(group=2)
def global_whiten_baseline(
    rewards: Float[Array, "P G"], mask: Bool[Array, "P G T"]
) -> Float[Array, "P G T"]:
    """r_i - group mean, then whitened over the batch's tokens (2501.03262)."""
    _check(rewards, mask)
    centred, count = _centred(rewards)
    valid = ~jnp.isnan(rewards) & (count > 1)
    return whiten(jnp.broadcast_to(centred[..., None], mask.shape), mask & valid[..., None])


@needs(group=1)
def accepted(
    rewards: Float[Array, "P G"], mask: Bool[Array, "P G T"], *, accept_reward: float
) -> Float[Array, "P G 1"]:
    """1 where r_i >= accept_reward, else 0: online rejection sampling fine-tuning
    (DeepSeekMath, 2402.03300, eq. 12)."""
    _check(rewards, mask)
    return (rewards >= accept_reward).astype(jnp.float32)[..., None]


@needs(group=2, steps=True, kl_in="loss")
def process(
    rewards: Float[Array, "P G"],
    mask: Bool[Array, "P G T"],
    *,
    step_rewards: Float[Array, "P G K"],
    step_ends: Int[Array, "P G K"],
    std_ddof: int,
    std_eps: float,
) -> Float[Array, "P G T"]:
    """Process supervision (DeepSeekMath 4.1.3, 2402.03300).

    step_rewards are normalised by the mean and std of all step rewards of the group; step_ends is
    the token at which each step ends, -1 where there is no step. A_t is the sum of the normalised
    rewards of the steps that end at or after t.
    """
    _check(rewards, mask)
    chex.assert_equal_shape([step_rewards, step_ends])
    chex.assert_equal_shape_prefix([step_rewards, mask], 2)
    scored = ~jnp.isnan(rewards)[..., None] & ~jnp.isnan(step_rewards) & (step_ends >= 0)
    lone = scored.any(-1).sum(-1)[:, None, None] < 2
    flat_shape = (rewards.shape[0], -1)
    steps = jnp.where(scored & ~lone, step_rewards, jnp.nan).reshape(flat_shape)
    everything = jnp.ones((*steps.shape, 1), bool)
    normalised = group_norm(steps, everything, std_ddof=std_ddof, std_eps=std_eps)
    normalised = normalised.reshape(step_rewards.shape)
    ends_later = step_ends[..., None, :] >= jnp.arange(mask.shape[-1])[:, None]
    return jnp.where(mask, jnp.where(ends_later, normalised[..., None, :], 0.0).sum(-1), 0.0)


@needs(group=1, critic=True)
def gae(
    rewards: Float[Array, "P G"],
    mask: Bool[Array, "P G T"],
    *,
    token_rewards: Float[Array, "P G T"],
    values: Float[Array, "P G T"],
    gamma: float,
    lam: float,
) -> Float[Array, "P G T"]:
    """Generalized advantage estimates, whitened over the batch's tokens (1707.06347).

    `generalized_advantages` has the recursion.
    """
    _check(rewards, mask)
    advantages, _ = generalized_advantages(token_rewards, values, mask, gamma=gamma, lam=lam)
    return whiten(advantages, mask & ~jnp.isnan(rewards)[..., None])


def generalized_advantages(
    token_rewards: Float[Array, "P G T"],
    values: Float[Array, "P G T"],
    mask: Bool[Array, "P G T"],
    *,
    gamma: float,
    lam: float,
) -> tuple[Float[Array, "P G T"], Float[Array, "P G T"]]:
    """Advantages and the critic's returns, both 0 where masked (GAE, 1506.02438).

    delta_t = R_t + gamma V_{t+1} - V_t; A_t = delta_t + gamma lam A_{t+1}; returns A_t + V_t. The
    next token is the next valid one: masked tokens (tool output) are skipped over.
    """
    chex.assert_equal_shape([token_rewards, values, mask])
    values = jnp.where(mask, values, 0.0)

    def step(carry, token):
        next_value, next_advantage = carry
        reward, value, valid = token
        delta = reward + gamma * next_value - value
        advantage = delta + gamma * lam * next_advantage
        carry = (
            jnp.where(valid, value, next_value),
            jnp.where(valid, advantage, next_advantage),
        )
        return carry, advantage

    tokens = [jnp.moveaxis(x, -1, 0) for x in (token_rewards, values, mask)]
    start = jnp.zeros(mask.shape[:2], values.dtype)
    _, advantages = jax.lax.scan(step, (start, start), tuple(tokens), reverse=True)
    advantages = jnp.where(mask, jnp.moveaxis(advantages, 0, -1), 0.0)
    return advantages, advantages + values


def discounted_sum(
    token_rewards: Float[Array, "P G T"], mask: Bool[Array, "P G T"], gamma: float
) -> Float[Array, "P G T"]:
    """G_t = R_t + gamma G_{t+1} over the valid tokens; 0 where masked."""
    nothing = jnp.zeros_like(token_rewards)
    return generalized_advantages(token_rewards, nothing, mask, gamma=gamma, lam=1.0)[0]


def whiten(x: Float[Array, "P G T"], mask: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """(x - mean) / sqrt(var + 1e-8) over all tokens where mask holds, else 0.

    var has Bessel's correction; an x without spread gives exactly 0.
    """
    chex.assert_equal_shape([x, mask])
    count = mask.sum()
    centred = x - x.sum(where=mask) / jnp.maximum(count, 1)
    variance = jnp.square(centred).sum(where=mask) / jnp.maximum(count - 1, 1)
    signal = mask & ~spread_is_noise(x, mask, axis=None)
    return jnp.where(signal, centred / jnp.sqrt(variance + 1e-8), 0.0)


def _check(rewards: Float[Array, "P G"], mask: Bool[Array, "P G T"]) -> None:
    chex.assert_rank([rewards, mask], [2, 3])
    chex.assert_shape(rewards, mask.shape[:2])


def _active(
    rewards: Float[Array, "P G"],
) -> tuple[Bool[Array, "P G"], Bool[Array, "P G"], Float[Array, "P G"]]:
    """Which rewards are valid; which of them are in a group with spread; rewards with NaN as 0."""
    valid = ~jnp.isnan(rewards)
    rewards = jnp.where(valid, rewards, 0.0)
    return valid, valid & ~spread_is_noise(rewards, valid), rewards


def _centred(rewards: Float[Array, "P G"]) -> tuple[Float[Array, "P G"], Int[Array, "P 1"]]:
    """r_i - mean over the group's valid rewards, and their number.

    Exactly 0 for an abstained completion and in a group without spread, such as a group of one.
    """
    valid, active, rewards = _active(rewards)
    count = valid.sum(-1, keepdims=True)
    mean = rewards.sum(-1, keepdims=True) / jnp.maximum(count, 1)
    return jnp.where(active, rewards - mean, 0.0), count


ADVANTAGES: dict[str, Callable[..., Advantages]] = {
    f.__name__: f
    for f in (
        group_norm,
        group_mean,
        leave_one_out,
        batch_norm,
        length_weighted,
        global_whiten,
        global_whiten_baseline,
        accepted,
        process,
        gae,
    )
}
