"""The sampler: prefill each prompt once, decode its group together."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.models.decoder import Decoder, init_cache, prefill
from grpo_jax.models.lora import merge_adapters
from grpo_jax.rollout.filters import Sampling, draw
from grpo_jax.rollout.speculative import check_drafts, speculate
from grpo_jax.types import Prompts, Rollouts


@partial(jax.jit, static_argnames=("model", "sampling", "group"))
def sample(
    model: Decoder, params, prompts: Prompts, rng: jax.Array, *, sampling: Sampling, group: int
) -> Rollouts:
    """Sample `group` completions of each prompt; the same key gives the same Rollouts.

    prompts of [P, S], left-padded, each with at least one token; rng a PRNG key, which every
    decode step folds its index into. Decoding ends when every completion has stopped or after
    T = sampling.max_tokens. Compiles once for each [P, S], group and sampling. ValueError for
    sampling.speculative of a model that cannot draft.
    """
    if sampling.speculative:
        check_drafts(model)
    if model.config.lora.base == "none":
        params = merge_adapters(model.config, params)  # once, not at every token
    P, G, T = prompts.tokens.shape[0], group, sampling.max_tokens
    hidden, prefix, lengths = prefill(model, params, prompts)
    logits: Any = model.apply({"params": params}, hidden[:, :, -1:], method=Decoder.logits)
    logits = jnp.broadcast_to(logits, (P, G, *logits.shape[2:]))[:, :, 0]
    empty = Rollouts(
        prompts=prompts,
        tokens=jnp.zeros((P, G, T), jnp.int32),
        mask=jnp.zeros((P, G, T), bool),
        logp=jnp.zeros((P, G, T)),
        entropy=jnp.zeros((P, G, T)),
        finished=jnp.zeros((P, G), bool),
    )
    out = _emit(empty, logits, 0, sampling, rng)
    if sampling.speculative:
        return speculate(model, params, out, hidden, prefix, sampling=sampling, rng=rng)

    def unfinished(carry):
        t, out, _ = carry
        return (t < T) & ~out.finished.all()

    def step(carry):
        t, out, cache = carry
        token = jax.lax.dynamic_slice_in_dim(out.tokens, t - 1, 1, axis=2)
        hidden, cache = model.apply(
            {"params": params},
            token,
            (lengths + t - 1)[:, None, None],
            prefix=prefix,
            prefix_mask=prompts.mask,
            cache=cache,
            index=t - 1,
        )
        logits = model.apply({"params": params}, hidden[:, :, 0], method=Decoder.logits)
        return t + 1, _emit(out, logits, t, sampling, rng), cache

    cache = init_cache(model.config, P, G, T)
    return jax.lax.while_loop(unfinished, step, (jnp.int32(1), out, cache))[1]


def _emit(out: Rollouts, logits, t, sampling: Sampling, rng) -> Rollouts:
    """Draw token t of every completion that has not stopped; logits f32[P, G, V]."""
    active = ~out.finished
    tokens, logp, entropy = draw(logits, sampling, jax.random.fold_in(rng, t))

    def put(array, values):
        values = jnp.where(active, values, jnp.zeros_like(values))
        return jax.lax.dynamic_update_slice_in_dim(array, values[:, :, None], t, axis=2)

    stopped = jnp.isin(tokens, jnp.array(sampling.stop, jnp.int32))
    return out.replace(
        tokens=put(out.tokens, tokens),
        mask=put(out.mask, active),
        logp=put(out.logp, logp),
        entropy=put(out.entropy, entropy),
        finished=out.finished | (active & stopped),
    )
