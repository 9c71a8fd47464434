"""The learner: a state, what a batch needs before updates, and the one jitted update.

P prompts, G group, T completion length; N micro-batches.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from grpo_jax import algorithms
from grpo_jax.algorithms import Algorithm
from grpo_jax.models.critic import critic_values
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.logps import completion_logps, token_logps
from grpo_jax.models.score import Routing, draft_hidden, score
from grpo_jax.optimizer import AdamW, Optimizer, adamw, schedule_of
from grpo_jax.train_state import Critic, abstract_state
from grpo_jax.types import Batch, CriticState, Rollouts, StepRewards, TrainState, merged


def make_optimizer(config, updates: int) -> Optimizer:
    """AdamW on clipped gradients that skips, and counts, non-finite ones.

    config   the fields of `optimizer` of an experiment
    updates  updates in all, the length of the schedule
    """
    names = ("b1", "b2", "eps", "weight_decay", "max_grad_norm")
    numbers = {name: float(config[name]) for name in names}
    return Optimizer(AdamW(schedule_of(config, updates), **numbers), adamw)


@partial(jax.jit, static_argnames=("model", "algorithm", "temperature"))
def prepare(
    state: TrainState,
    rollouts: Rollouts,
    rewards: jax.Array,
    steps: StepRewards | None = None,
    *,
    model: Decoder,
    algorithm: Algorithm,
    temperature: float,
) -> Batch:
    """Rollouts and rewards f32[P, G] -> a Batch: advantages, and the log-probs they need.

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
    reference = state.base if state.ref_params is None else state.ref_params
    logp_ref = logps(reference) if algorithm.beta > 0 else None
    kl = values = returns = None
    if logp_ref is not None and algorithm.kl_in == "reward":
        kl = algorithms.KLS[algorithm.kl](r.logp, logp_ref, mask)
    if state.critic is not None:
        values = _values(model, state, r.prompts, r.tokens)
        returns = algorithms.compute_returns(algorithm, rewards, mask, values, kl=kl)
    advantages = algorithms.compute_advantages(
        algorithm, rewards, mask, kl=kl, values=values, steps=steps
    )
    mask = mask & ~jnp.isnan(rewards)[..., None]
    if algorithm.mask_truncated:
        mask = algorithms.drop_truncated(mask, r.finished)
    reused = algorithm.inner_epochs * algorithm.minibatches > 1
    logp_old = logps(state.policy) if reused or algorithm.tis_mode != "none" else None
    correction = selection = None
    if logp_old is not None:
        correction = algorithms.rollout_correction(algorithm, logp_old, r.logp, mask)
    if algorithm.token_selection != "none":
        selection = algorithms.select_tokens(
            algorithm,
            mask,
            advantages=advantages,
            logp_rollout=r.logp,
            entropy=r.entropy,
            rng=jax.random.fold_in(state.rng, state.step),
        )
    rest = (r.logp, logp_old, logp_ref, correction, selection, values, returns)
    return Batch(r.prompts, r.tokens, mask, advantages, *rest)


def _values(model, state, prompts, tokens):
    """The critic's values f32[P, G, T] of whole completions."""
    critic, hidden = state.critic.params, None
    if "body" not in critic:
        hidden = score(model, state.policy, prompts, tokens).hidden
    return critic_values(model, critic, state.frozen, prompts, tokens, hidden)


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
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on a minibatch, and its metrics, f32[].

    `accumulation` micro-batches, scanned: loss weights are computed once from the whole
    minibatch, so that their number does not change the gradient (up to rounding). The state is
    donated; with its `mesh` given, the new one lies exactly as the old one did, which XLA alone
    does not promise. Non-finite gradients leave the parameters as they were. `joint_mtp` lets the
    loss of a multi-token prediction layer reach the decoder; else it trains that layer alone.
    A state with a critic needs `critic`, as `init_state` had it.
    """
    weights = algorithms.token_weights(batch.mask, algorithm.aggregation, batch.mask.shape[-1])
    share = algorithms.token_weights(batch.mask, "token_mean")
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
    trained = state.params, None if state.critic is None else state.critic.params
    (gradient, slope), (metrics, load) = micro_batched(loss, trained, parts, accumulation)
    steps, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, steps)
    metrics |= load_metrics(load)
    metrics["grad_norm"] = optax.tree.norm(gradient)
    metrics["learning_rate"] = optax.tree_utils.tree_get(opt_state, "hyperparams")["learning_rate"]
    metrics["skipped_updates"] = opt_state.total_notfinite
    moved, skipped = _moved_critic(critic, state.critic, slope)
    metrics["skipped_in_a_row"] = jnp.maximum(opt_state.notfinite_count, skipped)
    rate = jnp.where(opt_state.last_finite, model.config.experts.bias_rate, 0.0)
    router = state.router and jax.tree.map(partial(_balanced, rate), state.router, load)
    new = state.replace(
        step=state.step + 1, params=params, opt_state=opt_state, router=router, critic=moved
    )
    if mesh is not None and mesh.size > 1:
        reference = state.ref_params is not None
        like = abstract_state(model, optimizer, mesh, reference=reference, critic=critic)
        new = jax.lax.with_sharding_constraint(new, jax.tree.map(lambda x: x.sharding, like))
    return new, metrics


def _moved_critic(critic: Critic | None, old: CriticState | None, gradient):
    """The critic after a step of its optimizer, and how many in a row were skipped."""
    if critic is None or old is None:
        return None, 0
    steps, opt_state = critic.optimizer.update(gradient, old.opt_state, old.params)
    return CriticState(optax.apply_updates(old.params, steps), opt_state), opt_state.notfinite_count


def micro_batched(loss, params, parts, accumulation: int):
    """The gradient of `loss` and what else it returns, summed over micro-batches of `parts`.

    parts  arrays [P, ...], in a tuple that begins with one whose tokens say P
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if accumulation == 1:
        (_, aux), gradient = value_and_grad(params, *parts)
        return gradient, aux

    def micro(total, part):
        (_, aux), gradient = value_and_grad(params, *part)
        return jax.tree.map(jnp.add, total, (gradient, aux)), None

    parts = _split(parts, accumulation)
    first = jax.tree.map(lambda x: x[0], parts)
    shape = jax.eval_shape(value_and_grad, params, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shape[1], shape[0][1]))
    return jax.lax.scan(micro, zeros, parts)[0]


def _loss(state, trained, batch: Batch, weights, share, *, model, algorithm, temperature, **mtp):
    """The loss of a part of a minibatch, and (its metrics, its experts' load).

    trained  the policy's parameters and the critic's, None without one
    """
    params, critic = trained
    policy = merged(state.base, state.router, params)
    scored = score(model, policy, batch.prompts, batch.tokens, batch.mask)
    logp, entropy = token_logps(model, policy, scored.hidden, batch.tokens, temperature)
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
    extra, load = _model_loss(model, policy, batch, scored, share, metrics, **mtp)
    gap = jnp.where(batch.mask, jnp.abs(jax.lax.stop_gradient(logp) - batch.logp_rollout), 0.0)
    loss += extra
    if critic is not None:
        frozen, hidden = state.frozen, scored.hidden
        values = critic_values(model, critic, frozen, batch.prompts, batch.tokens, hidden)
        extra, more = _value_loss(algorithm, batch, values, weights)
        loss += extra
        metrics |= more | {"val/mean": (share * values).sum()}
    metrics |= {"loss": loss, "sampling/sampling_logp_difference/mean": (share * gap).sum()}
    return loss, (metrics, load)


def _value_loss(algorithm: Algorithm, batch: Batch, values: jax.Array, weights: jax.Array):
    """The critic's part of the loss, and its metrics."""
    assert batch.values is not None and batch.returns is not None, "prepare() had no critic"
    arrays = values, batch.values, batch.returns, batch.mask, weights
    clip, coefficient = algorithm.value_clip, algorithm.value_coef
    loss, metrics = algorithms.value_loss(*arrays, value_clip=clip, value_coef=coefficient)
    return loss, metrics | {"val/loss": loss}


def _model_loss(model, policy, batch, scored, share, metrics, *, rows: int, joint_mtp: bool):
    """What the model's own parts add to the loss, whatever the algorithm, and the experts' load.

    The balance loss of experts (2412.19437, eq. 17) is a mean over `rows` completions, that of
    multi-token prediction (eq. 24) over tokens.
    """
    c, routing, extra = model.config, scored.routing, jnp.zeros(())
    if c.mtp and c.mtp_weight:
        if not joint_mtp:
            policy = {k: v if k == "mtp" else jax.lax.stop_gradient(v) for k, v in policy.items()}
            scored = jax.lax.stop_gradient(scored)
        drafts, more = draft_hidden(model, policy, batch.prompts, scored, batch.tokens, batch.mask)
        logp, _ = token_logps(model, policy, drafts[:, :, :-1], batch.tokens[:, :, 1:])
        metrics["mtp/loss"] = -(share * batch.mask)[:, :, 1:].reshape(-1) @ logp.reshape(-1)
        extra += c.mtp_weight * metrics["mtp/loss"]
        if more is not None:
            routing = Routing(routing.load | more.load, routing.balance + more.balance)
    if routing is None:
        return extra, {}
    metrics["moe/balance"] = routing.balance / rows
    return extra + c.experts.balance * metrics["moe/balance"], routing.load


def load_metrics(load: Any) -> dict[str, jax.Array]:
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


def _split(tree: Any, n: int) -> Any:
    """Arrays [P, G, ...] -> [n, ...]: whole groups if n divides P, else parts of groups.

    Splitting a group forwards its prompt once a part. ValueError if neither divides.
    """
    P, G = tree[0].tokens.shape[:2]
    if P % n == 0:
        return jax.tree.map(lambda x: x.reshape(n, P // n, *x.shape[1:]), tree)
    if n % P or G % (n // P):
        raise ValueError(
            f"optimizer.accumulation={n} must divide the minibatch's {P} prompts, or be a "
            f"multiple of them that divides {P} x {G} completions"
        )
    parts = n // P

    def grouped(x):  # [P, G, ...] -> [P * parts, 1, G / parts, ...]
        return x.reshape(P * parts, 1, G // parts, *x.shape[2:])

    def repeated(x):  # [P, S] -> [P * parts, 1, S]
        return jnp.repeat(x, parts, axis=0)[:, None]

    batch, *rest = tree
    prompts = jax.tree.map(repeated, batch.prompts)
    others = jax.tree.map(grouped, batch.replace(prompts=None))
    return (others.replace(prompts=prompts), *jax.tree.map(grouped, rest))


def minibatches(batch: Batch, algorithm: Algorithm, seed: tuple[int, ...]) -> Iterator[Batch]:
    """Every minibatch of every inner epoch; prompts are dealt anew each epoch when cut.

    seed  what the dealing depends on, such as (config.seed, step)
    """
    P, n = batch.tokens.shape[0], algorithm.minibatches
    for epoch in range(algorithm.inner_epochs):
        if n == 1:
            yield batch
            continue
        order = np.random.default_rng((*seed, epoch)).permutation(P)
        for part in np.split(order, n):
            yield jax.tree.map(lambda x, part=part: x[part], batch)


@partial(jax.jit, static_argnames=("mix",), donate_argnames=("ref_params",))
def refresh_reference(ref_params: Any, params: Any, mix: float) -> Any:
    """Move the reference to mix * policy + (1 - mix) * reference (iterative GRPO, 2402.03300)."""
    return jax.tree.map(lambda r, p: (mix * p + (1 - mix) * r).astype(r.dtype), ref_params, params)
