"""The sampler: prefill each prompt once, decode its group together."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.engines.filters import Sampling, draw
from grpo_jax.engines.speculative import check_drafts, speculate
from grpo_jax.engines.stops import START, advance
from grpo_jax.models.decoder import Decoder, init_cache, prefill
from grpo_jax.models.lora import merge_adapters
from grpo_jax.types import Prompts, Rollouts


@partial(jax.jit, static_argnames=("model", "sampling", "group"))
def sample(
    model: Decoder,
    params,
    prompts: Prompts,
    rng: jax.Array,
    *,
    sampling: Sampling,
    group: int,
    stops: jax.Array | None = None,
) -> Rollouts:
    """Sample `group` completions of each prompt; the same key gives the same Rollouts.

    prompts of [P, S], left-padded, each with at least one token; rng a PRNG key, which every
    decode step folds its index into. A completion stops at any of sampling.stop, or with the token
    that completes a stop string of the table `stops` (`rollout.stops`); decoding ends when every
    one has stopped or after T = sampling.max_tokens. Compiles once for each [P, S], group and
    sampling. ValueError for sampling.speculative of a model that cannot draft.
    """
    if sampling.speculative:
        check_drafts(model)
    if model.config.lora.base == "none":
        params = merge_adapters(model.config, params)  # once, not at every token
    P, G, T = prompts.tokens.shape[0], group, sampling.max_tokens
    hidden, prefix, lengths = prefill(model, params, prompts)
    logits: Any = model.apply({"params": params}, hidden[:, :, -1:], method=Decoder.logits)
    logits = jnp.broadcast_to(logits, (P, G, *logits.shape[2:]))[:, :, 0]
    read = None if stops is None else jnp.full((P, G), START)  # what is known of the text
    out, read = _emit(_empty(prompts, G, T), read, logits, 0, sampling, rng, stops)
    if sampling.speculative:
        watch = (stops, read)
        return speculate(model, params, out, hidden, prefix, watch, sampling=sampling, rng=rng)

    def unfinished(carry):
        t, out, *_ = carry
        return (t < T) & ~out.finished.all()

    def step(carry):
        t, out, read, cache = carry
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
        return t + 1, *_emit(out, read, logits, t, sampling, rng, stops), cache

    cache = init_cache(model.config, P, G, T)
    return jax.lax.while_loop(unfinished, step, (jnp.int32(1), out, read, cache))[1]


def _empty(prompts: Prompts, group: int, length: int) -> Rollouts:
    shape = (len(prompts.tokens), group, length)
    return Rollouts(
        prompts=prompts,
        tokens=jnp.zeros(shape, jnp.int32),
        mask=jnp.zeros(shape, bool),
        logp=jnp.zeros(shape),
        entropy=jnp.zeros(shape),
        finished=jnp.zeros(shape[:2], bool),
    )


def _emit(out: Rollouts, read, logits, t, sampling: Sampling, rng, stops):
    """Draw token t of every completion that has not stopped; logits f32[P, G, V].

    read i32[P, G], the states of the table `stops`, is returned too; both are None without one.
    """
    active = ~out.finished
    tokens, logp, entropy = draw(logits, sampling, jax.random.fold_in(rng, t))

    def put(array, values):
        values = jnp.where(active, values, jnp.zeros_like(values))
        return jax.lax.dynamic_update_slice_in_dim(array, values[:, :, None], t, axis=2)

    stopped = jnp.isin(tokens, jnp.array(sampling.stop, jnp.int32))
    if stops is not None:
        read, ended = advance(stops, read, tokens)
        stopped |= ended
    out = out.replace(
        tokens=put(out.tokens, tokens),
        mask=put(out.mask, active),
        logp=put(out.logp, logp),
        entropy=put(out.entropy, entropy),
        finished=out.finished | (active & stopped),
    )
    return out, read
