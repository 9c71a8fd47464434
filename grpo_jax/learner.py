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
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.logps import completion_logps
from grpo_jax.sharding import shardings, unbox
from grpo_jax.types import Batch, Rollouts, TrainState

NEVER = 2**30


def make_optimizer(config, updates: int) -> optax.GradientTransformation:
    """AdamW on clipped gradients that skips, and counts, non-finite ones.

    config   the fields of `optimizer` of an experiment
    updates  updates in all, the length of the schedule
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    rest = max(updates - warmup, 1)
    decay = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, peak * config.end_factor, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, config.end_factor),
    }[config.schedule]()
    # The first update already learns: warm-up runs from peak / (warmup + 1).
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    schedule = optax.join_schedules([rise, decay], [warmup]) if warmup else decay
    adamw = optax.inject_hyperparams(optax.adamw, static_args=("mask",))(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=_decayed,
    )
    clipped = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adamw)
    return optax.apply_if_finite(clipped, max_consecutive_errors=NEVER)


def _decayed(params):
    """Weight decay is for matrices; the scales of norms are left alone."""
    return jax.tree.map_with_path(lambda path, _: "scale" not in jax.tree_util.keystr(path), params)


def init_state(
    model: Decoder,
    optimizer: optax.GradientTransformation,
    rng: jax.Array,
    mesh: Mesh,
    *,
    reference: bool,
    params: Any = None,
) -> TrainState:
    """A TrainState on the mesh, sharded as the parameters' logical axes say.

    params     parameters to start from; None draws them from rng
    reference  keep a copy of the parameters as the reference policy
    """
    init = _initialiser(model, optimizer, reference)
    place = shardings(jax.eval_shape(init, rng), mesh)
    state = jax.jit(lambda key: unbox(init(key)), out_shardings=place)(rng)
    if params is None:
        return state
    params = jax.tree.map(
        lambda x, like: jax.device_put(x.astype(like.dtype), like.sharding), params, state.params
    )
    copy = jax.tree.map(jnp.copy, params) if reference else None
    return state.replace(params=params, ref_params=copy)


def abstract_state(
    model: Decoder, optimizer: optax.GradientTransformation, mesh: Mesh, *, reference: bool
) -> TrainState:
    """The shapes and shardings of `init_state`, to restore a checkpoint into."""
    init = _initialiser(model, optimizer, reference)
    boxed = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        unbox(boxed),
        shardings(boxed, mesh),
    )


def _initialiser(model, optimizer, reference):
    def init(rng):
        tokens = jnp.zeros((1, 1, 2), jnp.int32)
        params = model.init(rng, tokens, method=Decoder.initialise)["params"]
        ref = jax.tree.map(jnp.copy, params) if reference else None
        return TrainState(jnp.int32(0), params, optimizer.init(params), ref, rng)

    return init


@partial(jax.jit, static_argnames=("model", "algorithm", "temperature"))
def prepare(
    state: TrainState,
    rollouts: Rollouts,
    rewards: jax.Array,
    *,
    model: Decoder,
    algorithm: Algorithm,
    temperature: float,
) -> Batch:
    """Rollouts and rewards f32[P, G] -> a Batch: advantages, and the log-probs they need.

    A completion whose reward is NaN (abstained) leaves the loss. Reference log-probs are
    computed when beta > 0, old ones when a rollout is used in several updates.
    """
    r, mask = rollouts, rollouts.mask

    def logps(params):
        return completion_logps(model, params, r.prompts, r.tokens, temperature)[0]

    T = mask.shape[-1]
    if algorithm.overlong_cache > 0:
        cache = algorithm.overlong_cache * T
        rewards = rewards + algorithms.soft_overlong(mask.sum(-1), T, cache)
    logp_ref = logps(state.ref_params) if algorithm.beta > 0 else None
    kl = None
    if logp_ref is not None and algorithm.kl_in == "reward":
        kl = algorithms.KLS[algorithm.kl](r.logp, logp_ref, mask)
    advantages = algorithms.compute_advantages(algorithm, rewards, mask, kl=kl)
    mask = mask & ~jnp.isnan(rewards)[..., None]
    if algorithm.mask_truncated:
        mask = algorithms.drop_truncated(mask, r.finished)
    reused = algorithm.inner_epochs * algorithm.minibatches > 1
    logp_old = logps(state.params) if reused or algorithm.tis_mode != "none" else None
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
    return Batch(
        r.prompts, r.tokens, mask, advantages, r.logp, logp_old, logp_ref, correction, selection
    )


@partial(
    jax.jit,
    static_argnames=("model", "optimizer", "algorithm", "temperature", "accumulation", "mesh"),
    donate_argnames=("state",),
)
def update(
    state: TrainState,
    batch: Batch,
    *,
    model: Decoder,
    optimizer: optax.GradientTransformation,
    algorithm: Algorithm,
    temperature: float = 1.0,
    accumulation: int = 1,
    mesh: Mesh | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on a minibatch, and its metrics, f32[].

    `accumulation` micro-batches, scanned: loss weights are computed once from the whole
    minibatch, so that their number does not change the gradient (up to rounding). The state is
    donated; with its `mesh` given, the new one lies exactly as the old one did, which XLA alone
    does not promise. Non-finite gradients leave the parameters as they were.
    """
    weights = algorithms.token_weights(batch.mask, algorithm.aggregation, batch.mask.shape[-1])
    share = algorithms.token_weights(batch.mask, "token_mean")
    loss = partial(_loss, model=model, algorithm=algorithm, temperature=temperature)
    value_and_grad = jax.value_and_grad(loss, has_aux=True)

    def micro(total, part):
        (_, metrics), gradient = value_and_grad(state.params, *part)
        return jax.tree.map(jnp.add, total, (gradient, metrics)), None

    parts = (batch, weights, share)
    if accumulation == 1:
        (_, metrics), gradient = value_and_grad(state.params, *parts)
    else:
        parts = _split(parts, accumulation)
        first = jax.tree.map(lambda x: x[0], parts)
        shape = jax.eval_shape(value_and_grad, state.params, *first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shape[1], shape[0][1]))
        (gradient, metrics), _ = jax.lax.scan(micro, zeros, parts)

    steps, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, steps)
    metrics["grad_norm"] = optax.tree.norm(gradient)
    metrics["learning_rate"] = optax.tree_utils.tree_get(opt_state, "hyperparams")["learning_rate"]
    metrics["skipped_updates"] = opt_state.total_notfinite
    metrics["skipped_in_a_row"] = opt_state.notfinite_count
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    if mesh is not None and mesh.size > 1:
        reference = state.ref_params is not None
        like = abstract_state(model, optimizer, mesh, reference=reference)
        place = jax.tree.map(lambda x: x.sharding, like)
        state = jax.lax.with_sharding_constraint(state, place)
    return state, metrics


def _loss(params, batch: Batch, weights, share, *, model, algorithm, temperature):
    logp, entropy = completion_logps(model, params, batch.prompts, batch.tokens, temperature)
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
    gap = jnp.where(batch.mask, jnp.abs(jax.lax.stop_gradient(logp) - batch.logp_rollout), 0.0)
    metrics |= {"loss": loss, "sampling/sampling_logp_difference/mean": (share * gap).sum()}
    return loss, metrics


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
