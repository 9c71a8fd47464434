"""Batches with what updates need: advantages, and log-probs of other policies.

P prompts, G group, T completion length.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax import algorithms
from grpo_jax.algorithms import Algorithm
from grpo_jax.learning.state import TrainState
from grpo_jax.models.critic import critic_values
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.forward import forward_group
from grpo_jax.models.logps import completion_logps
from grpo_jax.types import Batch, Rollouts, StepRewards


@partial(jax.jit, static_argnames=("model", "algorithm", "temperature"))
def prepare(
    state: TrainState,
    rollouts: Rollouts,
    rewards: Float[Array, "P G"],
    steps: StepRewards | None = None,
    *,
    model: Decoder,
    algorithm: Algorithm,
    temperature: float,
) -> Batch:
    """Rollouts and their rewards -> a Batch: advantages, and the log-probs they need.

    A completion whose reward is NaN (abstained) leaves the loss. `steps` are for an advantage that
    takes them. Reference log-probs are computed when beta > 0, old ones when a rollout is used in
    several updates, values and returns when the state has a critic.
    """
    r, mask = rollouts, rollouts.mask

    def logps(params):
        return completion_logps(model, params, r.prompts, r.tokens, temperature)[0]

    T = mask.shape[-1]
    if algorithm.overlong_cache > 0:
        cache = algorithm.overlong_cache * T
        rewards = rewards + algorithms.soft_overlong(mask.sum(-1), T, cache)
    reference = state.policy.base if state.reference is None else state.reference
    logp_ref = logps(reference) if algorithm.beta > 0 else None
    kl = values = returns = None
    if logp_ref is not None:
        kl = algorithms.reward_kl(algorithm, r.logp, logp_ref, mask)
    if state.critic is not None:
        values = _values(model, state, r.prompts, r.tokens)
        returns = algorithms.compute_returns(algorithm, rewards, mask, values, kl=kl)
    advantages = algorithms.compute_advantages(
        algorithm, rewards, mask, kl=kl, values=values, steps=steps
    )
    mask = mask & ~jnp.isnan(rewards)[..., None]
    if algorithm.mask_truncated:
        mask = algorithms.drop_truncated(mask, r.finished)
    logp_old = logps(state.policy.full) if needs_old(algorithm) else None
    batch = Batch(
        prompts=r.prompts,
        tokens=r.tokens,
        mask=mask,
        advantages=advantages,
        logp_rollout=r.logp,
        logp_old=logp_old,
        logp_ref=logp_ref,
        values=values,
        returns=returns,
    )
    return _weighed(algorithm, state, batch, r.entropy)


def needs_old(algorithm: Algorithm) -> bool:
    """Whether updates need the log-probs of the policy before them: a rollout is used in several,
    or corrected for the sampler."""
    reused = algorithm.inner_epochs * algorithm.minibatches > 1
    return reused or algorithm.tis_mode != "none"


def _weighed(
    algorithm: Algorithm, state: TrainState, batch: Batch, entropy: Float[Array, "P G T"]
) -> Batch:
    """The batch with the correction and the selection of its tokens that the algorithm asks for."""
    logp, old = batch.logp_rollout, batch.logp_old
    if old is not None:
        correction = algorithms.rollout_correction(algorithm, old, logp, batch.mask)
        batch = batch.replace(correction=correction)
    if algorithm.token_selection == "none":
        return batch
    selection = algorithms.select_tokens(
        algorithm,
        batch.mask,
        advantages=batch.advantages,
        logp_rollout=logp,
        entropy=entropy,
        rng=jax.random.fold_in(state.rng, state.step),
    )
    return batch.replace(selection=selection)


def _values(model, state, prompts, tokens):
    """The critic's values f32[P, G, T] of whole completions."""
    critic, hidden = state.critic.params, None
    if "body" not in critic:
        hidden = forward_group(model, state.policy.full, prompts, tokens).hidden
    return critic_values(model, critic, state.policy.frozen, prompts, tokens, hidden)
