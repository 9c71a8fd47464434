"""The one jitted update: the loss of a minibatch, its gradient, and the optimizer's step."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from grpo_jax import algorithms
from grpo_jax.algorithms import Algorithm
from grpo_jax.learning.microbatches import micro_batched
from grpo_jax.learning.optimizer import Optimizer, apply_gradient
from grpo_jax.learning.state import Critic, CriticState, TrainState, abstract_state
from grpo_jax.models.critic import critic_values
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.forward import Routing, draft_hidden, forward_group
from grpo_jax.models.logps import token_logps
from grpo_jax.types import Batch, Params


class Updated(NamedTuple):
    """The new state, and metrics f32[] by name."""

    state: TrainState
    metrics: dict[str, jax.Array]


@partial(
    jax.jit,
    static_argnames=(*("model", "algorithm", "temperature", "accumulation", "mesh", "joint_mtp"),),
    donate_argnames=("state",),
)
def update(
    state: TrainState,
    batch: Batch,
    *,
    model: Decoder,
    optimizer: Optimizer,
    algorithm: Algorithm,
    temperature: float = 1.0,
    accumulation: int = 1,
    mesh: Mesh | None = None,
    joint_mtp: bool = False,
    critic: Critic | None = None,
) -> Updated:
    """One optimizer step on a minibatch, and its metrics, f32[].

    `accumulation` micro-batches, scanned: loss weights are computed once from the whole
    minibatch, so that their number does not change the gradient (up to rounding). The state is
    donated; with its `mesh` given, the new one lies exactly as the old one did, which XLA by itself
    does not promise. Non-finite gradients leave the parameters as they were. `joint_mtp` lets the
    loss of a multi-token prediction layer reach the decoder; else it trains only that layer.
    A state with a critic needs `critic`, as `init_state` had it.
    """
    weights = algorithms.loss_weights(algorithm, batch.mask)
    share = algorithms.token_share(batch.mask)
    loss = partial(
        _loss,
        state,
        model=model,
        algorithm=algorithm,
        temperature=temperature,
        rows=batch.mask.shape[0] * batch.mask.shape[1],
        joint_mtp=joint_mtp,
    )
    parts = (batch, weights, share)
    trained = state.policy.trained, None if state.critic is None else state.critic.params
    (gradient, slope), (metrics, load) = micro_batched(loss, trained, parts, accumulation)
    moved = apply_gradient(optimizer, state.policy.trained, state.opt_state, gradient)
    metrics |= load_metrics(load) | moved.metrics
    critic_state, skipped = _moved_critic(critic, state.critic, slope)
    metrics["skipped_in_a_row"] = jnp.maximum(metrics["skipped_in_a_row"], skipped)
    rate = jnp.where(moved.finite, model.config.experts.bias_rate, 0.0)
    router = state.policy.router
    router = router and jax.tree.map(partial(_balanced, rate), router, load)
    new = state.replace(
        step=state.step + 1,
        policy=state.policy.replace(trained=moved.params, router=router),
        opt_state=moved.opt_state,
        critic=critic_state,
    )
    if mesh is not None and mesh.size > 1:
        reference = state.reference is not None
        like = abstract_state(model, optimizer, mesh, reference=reference, critic=critic)
        new = jax.lax.with_sharding_constraint(new, jax.tree.map(lambda x: x.sharding, like))
    return Updated(new, metrics)


def _moved_critic(critic: Critic | None, old: CriticState | None, gradient):
    """The critic after a step of its optimizer, and how many in a row were skipped."""
    if critic is None or old is None:
        return None, 0
    moved = apply_gradient(critic.optimizer, old.params, old.opt_state, gradient)
    skipped = moved.metrics["skipped_in_a_row"]
    return CriticState(params=moved.params, opt_state=moved.opt_state), skipped


def _loss(state, trained, batch: Batch, weights, share, *, model, algorithm, temperature, **mtp):
    """The loss of a micro-batch, and (its metrics, its experts' load).

    trained  the policy's parameters and the critic's, None without one
    """
    params, critic = trained
    policy = state.policy.replace(trained=params).full
    forwarded = forward_group(model, policy, batch.prompts, batch.tokens, batch.mask)
    logp, entropy = token_logps(model, policy, forwarded.hidden, batch.tokens, temperature)
    bonus = algorithm.entropy_bonus > 0
    loss, metrics = algorithms.policy_loss(
        algorithm,
        logp,
        mask=batch.mask,
        advantages=batch.advantages,
        weights=weights,
        token_share=share,
        logp_old=batch.logp_old,
        logp_ref=batch.logp_ref,
        entropy=entropy if bonus else jax.lax.stop_gradient(entropy),
        correction=batch.correction,
        selection=batch.selection,
    )
    extra, load = _model_loss(model, policy, batch, forwarded, share, metrics, **mtp)
    gap = jnp.where(batch.mask, jnp.abs(jax.lax.stop_gradient(logp) - batch.logp_rollout), 0.0)
    loss += extra
    if critic is not None:
        frozen, hidden = state.policy.frozen, forwarded.hidden
        values = critic_values(model, critic, frozen, batch.prompts, batch.tokens, hidden)
        extra, more = _value_loss(algorithm, batch, values, weights)
        loss += extra
        metrics |= more | {"val/mean": (share * values).sum()}
    metrics |= {"loss": loss, "sampling/sampling_logp_difference/mean": (share * gap).sum()}
    return loss, (metrics, load)


def _value_loss(algorithm: Algorithm, batch: Batch, values: jax.Array, weights: jax.Array):
    """The critic's loss, and its metrics."""
    assert batch.values is not None and batch.returns is not None, "prepare() had no critic"
    arrays = values, batch.values, batch.returns, batch.mask, weights
    clip, coefficient = algorithm.value_clip, algorithm.value_coef
    loss, metrics = algorithms.value_loss(*arrays, value_clip=clip, value_coef=coefficient)
    return loss, metrics | {"val/loss": loss}


def _model_loss(model, policy, batch, forwarded, share, metrics, *, rows: int, joint_mtp: bool):
    """The losses of the model's experts and prediction layer, and the experts' load.

    The balance loss of experts (2412.19437, eq. 17) is a mean over `rows` completions, that of
    multi-token prediction (eq. 24) over tokens.
    """
    c, routing, extra = model.config, forwarded.routing, jnp.zeros(())
    if c.mtp and c.mtp_weight:
        if not joint_mtp:
            policy = {k: v if k == "mtp" else jax.lax.stop_gradient(v) for k, v in policy.items()}
            forwarded = jax.lax.stop_gradient(forwarded)
        drafts, more = draft_hidden(
            model, policy, batch.prompts, forwarded, batch.tokens, batch.mask
        )
        logp, _ = token_logps(model, policy, drafts[:, :, :-1], batch.tokens[:, :, 1:])
        metrics["mtp/loss"] = -(share * batch.mask)[:, :, 1:].reshape(-1) @ logp.reshape(-1)
        extra += c.mtp_weight * metrics["mtp/loss"]
        if more is not None:
            routing = Routing(routing.load | more.load, routing.balance + more.balance)
    if routing is None:
        return extra, {}
    metrics["moe/balance"] = routing.balance / rows
    return extra + c.experts.balance * metrics["moe/balance"], routing.load


def load_metrics(load: chex.ArrayTree) -> dict[str, jax.Array]:
    """How evenly experts were used: the busiest and idlest expert's load over the mean, averaged
    over layers; of a tree of loads f32[.., E]."""
    layers = [x.reshape(-1, x.shape[-1]) for x in jax.tree.leaves(load)]
    if not layers:
        return {}
    loads = jnp.concatenate(layers)
    relative = loads / jnp.maximum(loads.mean(-1, keepdims=True), 1e-9)
    return {
        "moe/load_max": relative.max(-1).mean(),
        "moe/load_min": relative.min(-1).mean(),
        "moe/idle_experts": (loads == 0).sum(-1).mean(dtype=jnp.float32),
    }


def _balanced(rate, bias, load):
    """Move the bias of busy experts down and of idle ones up (2408.15664)."""
    return bias + rate * jnp.sign(load.mean(-1, keepdims=True) - load)


@partial(jax.jit, static_argnames=("mix",), donate_argnames=("reference",))
def refresh_reference(reference: Params, params: Params, mix: float) -> Params:
    """Move the reference to mix * policy + (1 - mix) * reference (iterative GRPO, 2402.03300)."""
    return jax.tree.map(lambda r, p: (mix * p + (1 - mix) * r).astype(r.dtype), reference, params)
