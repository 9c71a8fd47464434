"""An Algorithm applied: rewards to advantages, log-probs to the loss.

Once per rollout, on the whole batch: `compute_advantages`, `compute_returns`, `select_tokens`,
`rollout_correction`. Once per minibatch: `token_weights`. Once per micro-batch, on slices of all
these: `policy_loss`, whose losses, gradients and metrics add up to those of the minibatch.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from grpo_jax.algorithms import shaping
from grpo_jax.algorithms.advantages import generalized_advantages
from grpo_jax.algorithms.algorithm import Algorithm, call, check_group, component, unclipped
from grpo_jax.algorithms.kl import importance_weighted
from grpo_jax.algorithms.ratios import masked_difference, token
from grpo_jax.algorithms.surrogates import never
from grpo_jax.errors import UsageError
from grpo_jax.types import Advantages, StepRewards

Metrics = dict[str, Float[Array, ""]]


def combine_rewards(
    algorithm: Algorithm, parts: Float[Array, "N P G"], weights: Float[Array, " N"]
) -> Float[Array, "P G"]:
    """One reward per completion, from those of N functions and their weights."""
    chex.assert_rank(parts, 3)
    weights = jnp.asarray(weights, jnp.float32)
    chex.assert_shape(weights, (parts.shape[0],))
    return call(component(algorithm, "reward_combination"), algorithm, parts, weights)


def compute_advantages(
    algorithm: Algorithm,
    rewards: Float[Array, "P G"],
    mask: Bool[Array, "P G T"],
    *,
    kl: Float[Array, "P G T"] | None = None,
    values: Float[Array, "P G T"] | None = None,
    steps: StepRewards | None = None,
) -> Advantages:
    """The algorithm's advantages, detached.

    rewards  NaN where abstained
    kl       of the behaviour policy to the reference, needed when kl_in is 'reward': token-level
             advantages see r_t - beta kl_t, the others r - beta sum_t kl_t
    values   of the critic, for an advantage that needs one
    steps    for an advantage that needs them; the outcome is added as the last one:
             `shaping.with_outcome`
    """
    kl = _reward_kl(algorithm, kl)
    arrays = {
        "token_rewards": shaping.token_rewards(rewards, mask, kl, algorithm.beta),
        "values": values,
    }
    if kl is not None:
        rewards = rewards - algorithm.beta * kl.sum(-1, where=mask)
    if steps is not None:
        steps = shaping.with_outcome(steps, rewards, mask)
        arrays |= {"step_rewards": steps.rewards, "step_ends": steps.ends}
    function = component(algorithm, "advantage")
    check_group("advantage", algorithm.advantage, function, rewards.shape[1])
    advantages = call(function, algorithm, rewards, mask, arrays=arrays)
    if advantages.shape not in (mask.shape, (*rewards.shape, 1)):
        raise UsageError(
            f"advantage {algorithm.advantage!r} returns shape {list(advantages.shape)}; valid: "
            f"[P, G, 1] or [P, G, T], here {[*rewards.shape, 1]} or {list(mask.shape)}"
        )
    return jax.lax.stop_gradient(advantages)


def compute_returns(
    algorithm: Algorithm,
    rewards: Float[Array, "P G"],
    mask: Bool[Array, "P G T"],
    values: Float[Array, "P G T"],
    *,
    kl: Float[Array, "P G T"] | None = None,
) -> Float[Array, "P G T"]:
    """The critic's targets A_t + V_t before whitening, detached (PPO, 1707.06347).

    An abstained completion (NaN reward) has its own values for targets.
    """
    kl = _reward_kl(algorithm, kl)
    rewarded = shaping.token_rewards(rewards, mask, kl, algorithm.beta)
    gamma, lam = algorithm.gamma, algorithm.lam
    _, returns = generalized_advantages(rewarded, values, mask, gamma=gamma, lam=lam)
    abstained = jnp.isnan(rewards)[..., None]
    return jax.lax.stop_gradient(jnp.where(abstained, jnp.where(mask, values, 0.0), returns))


def select_tokens(
    algorithm: Algorithm,
    mask: Bool[Array, "P G T"],
    *,
    advantages: Advantages | None = None,
    logp_rollout: Float[Array, "P G T"] | None = None,
    entropy: Float[Array, "P G T"] | None = None,
    rng: Key[Array, ""] | None = None,
) -> Float[Array, "P G T"] | None:
    """The algorithm's token selection on the WHOLE batch, or None when it has none.

    From what the rollout left: logp_rollout and entropy; rng for one that draws lots.
    """
    if algorithm.token_selection == "none":
        return None
    arrays = {
        "advantages": advantages,
        "logp_rollout": logp_rollout,
        "entropy": entropy,
        "rng": rng,
    }
    selected = call(component(algorithm, "token_selection"), algorithm, mask, arrays=arrays)
    return jax.lax.stop_gradient(selected)


def rollout_correction(
    algorithm: Algorithm,
    logp_old: Float[Array, "P G T"],
    logp_rollout: Float[Array, "P G T"],
    mask: Bool[Array, "P G T"],
) -> Float[Array, "P G T"] | None:
    """The algorithm's weight for the sampler's drift, or None when it has none."""
    if algorithm.tis_mode == "none":
        return None
    return call(component(algorithm, "tis_mode"), algorithm, logp_old, logp_rollout, mask)


def loss_weights(algorithm: Algorithm, mask: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """Each token's weight in the algorithm's loss, from the WHOLE minibatch's mask."""
    chex.assert_rank(mask, 3)
    weights = call(component(algorithm, "aggregation"), algorithm, mask, mask.shape[-1])
    return weights.astype(jnp.float32)


def reward_kl(
    algorithm: Algorithm,
    logp: Float[Array, "P G T"],
    logp_ref: Float[Array, "P G T"],
    mask: Bool[Array, "P G T"],
) -> Float[Array, "P G T"] | None:
    """The behaviour policy's KL to the reference that is subtracted from the reward, or None."""
    if algorithm.kl_in != "reward":
        return None
    return call(component(algorithm, "kl"), algorithm, logp, logp_ref, mask)


def policy_loss(
    algorithm: Algorithm,
    logp: Float[Array, "P G T"],
    *,
    mask: Bool[Array, "P G T"],
    advantages: Advantages,
    weights: Float[Array, "P G T"],
    token_share: Float[Array, "P G T"],
    logp_old: Float[Array, "P G T"] | None = None,
    logp_ref: Float[Array, "P G T"] | None = None,
    entropy: Float[Array, "P G T"] | None = None,
    correction: Float[Array, "P G T"] | None = None,
    selection: Float[Array, "P G T"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """sum(weights * per-token loss), and metrics, both of which add over micro-batches.

    surrogate * correction * selection + beta kl - entropy_bonus * entropy, per token; the gradient
    flows through logp and entropy only.

    weights      token_weights of the whole minibatch
    token_share  of the whole minibatch: the metrics' mean
    logp_old     None: every token is used once, and stopgrad(logp) takes its place
    logp_ref     needed when beta > 0 and kl_in is 'loss'
    correction   of `rollout_correction`; selection of `select_tokens`
    """
    chex.assert_rank([logp, mask, advantages], 3)
    chex.assert_equal_shape([logp, mask, weights, token_share])
    detached = jax.lax.stop_gradient
    # Garbage at masked positions ends here: the functions below see only finite numbers.
    logp = jnp.where(mask, logp, 0.0)
    old = detached(logp if logp_old is None else jnp.where(mask, logp_old, 0.0))
    advantages = detached(jnp.where(mask, advantages, 0.0))

    penalty_of = _penalty_of(algorithm)
    if penalty_of is not None:
        algorithm = unclipped(algorithm)
    log_ratio = call(component(algorithm, "ratio"), algorithm, logp, old, mask)
    token_log_ratio = token(logp, old, mask)
    loss = call(component(algorithm, "surrogate"), algorithm, log_ratio, advantages, logp, mask)
    if correction is not None:
        loss = loss * detached(correction)
    if algorithm.token_selection != "none":
        loss = _apply_selection(algorithm, loss, masked_difference(logp, old, mask), selection)
    penalty, penalty_metrics = _penalties(algorithm, logp, mask, token_log_ratio, logp_ref, entropy)
    metrics = _ratio_metrics(algorithm, log_ratio, token_log_ratio, advantages) | penalty_metrics
    metrics = {name: detached(jnp.sum(token_share * x)) for name, x in metrics.items()}
    return jnp.sum(weights * (loss + penalty)), metrics


def _penalty_of(algorithm: Algorithm) -> Callable[..., Float[Array, "P G T"]] | None:
    """The penalty of selected tokens in place of the clip; None where the selection has none."""
    if algorithm.token_selection == "none":
        return None
    return getattr(component(algorithm, "token_selection"), "penalty", None)


def _apply_selection(
    algorithm: Algorithm,
    loss: Float[Array, "P G T"],
    drift: Float[Array, "P G T"],
    selection: Float[Array, "P G T"] | None,
) -> Float[Array, "P G T"]:
    """The loss of the selected tokens, or of all with the selected ones' penalty.

    drift  logp - logp_old
    """
    if selection is None:
        raise ValueError(f"token_selection {algorithm.token_selection!r} needs selection")
    selection = jax.lax.stop_gradient(selection)
    if (penalty := _penalty_of(algorithm)) is not None:
        return loss + selection * call(penalty, algorithm, drift)
    return loss * selection


def _penalties(
    algorithm: Algorithm,
    logp: Float[Array, "P G T"],
    mask: Bool[Array, "P G T"],
    token_log_ratio: Float[Array, "P G T"],
    logp_ref: Float[Array, "P G T"] | None,
    entropy: Float[Array, "P G T"] | None,
) -> tuple[Float[Array, "P G T"], dict[str, Array]]:
    """beta kl - entropy_bonus * entropy per token, and both for the metrics."""
    penalty = jnp.zeros_like(logp)
    metrics = {}
    if logp_ref is not None:
        reference = jax.lax.stop_gradient(jnp.where(mask, logp_ref, 0.0))
        kl = metrics["kl"] = call(component(algorithm, "kl"), algorithm, logp, reference, mask)
        if algorithm.kl_in == "loss" and algorithm.beta > 0:
            if algorithm.kl_unbiased:
                kl = importance_weighted(kl, token_log_ratio)
            penalty += algorithm.beta * kl
    elif algorithm.kl_in == "loss" and algorithm.beta > 0:
        raise ValueError(f"beta {algorithm.beta} with kl_in 'loss' needs logp_ref")
    if entropy is not None:
        metrics["entropy"] = jnp.where(mask, entropy, 0.0)
        penalty -= algorithm.entropy_bonus * metrics["entropy"]
    elif algorithm.entropy_bonus > 0:
        raise ValueError(f"entropy_bonus {algorithm.entropy_bonus} needs entropy")
    return penalty, metrics


def _ratio_metrics(
    algorithm: Algorithm,
    log_ratio: Float[Array, "P G T"],
    token_log_ratio: Float[Array, "P G T"],
    advantages: Advantages,
) -> dict[str, Array]:
    """approx_kl is Schulman's unbiased estimate of KL(old || policy), w - 1 - log w."""
    where = getattr(component(algorithm, "surrogate"), "clips", never)
    low, high = call(where, algorithm, log_ratio, advantages)
    return {
        "clip_ratio/low_mean": low,
        "clip_ratio/high_mean": high,
        "clip_ratio/region_mean": low | high,
        "approx_kl": jnp.expm1(token_log_ratio) - token_log_ratio,
    }


def _reward_kl(
    algorithm: Algorithm, kl: Float[Array, "P G T"] | None
) -> Float[Array, "P G T"] | None:
    """The KL that is subtracted from the reward, or None."""
    if algorithm.kl_in != "reward" or algorithm.beta == 0:
        return None
    if kl is None:
        raise ValueError(f"beta {algorithm.beta} with kl_in 'reward' needs kl")
    return kl
