"""Lockstep decoding: prefill each prompt once, then one token of every completion each pass."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from grpo_jax.engines.filters import Sampling, draw
from grpo_jax.engines.stops import START, advance
from grpo_jax.models.decoder import Decoder, init_cache, prefill
from grpo_jax.models.lora import merge_adapters
from grpo_jax.types import Params, Prompts, Rollouts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lockstep:
    """The engine that decodes a batch until its last completion has stopped.

    stops  the table of stop strings (`engines.stops`), or None
    """

    model: Decoder
    stops: Int[Array, "N V"] | None = None

    def generate(
        self, params: Params, prompts: Prompts, keys: Key[Array, "P G"], sampling: Sampling
    ) -> Rollouts:
        """A completion for each key; compiles once for each shape and sampling."""
        return sample(self.model, params, prompts, keys, sampling=sampling, stops=self.stops)


class Start(NamedTuple):
    """The start of decoding: Rollouts with their first token, and the prompts' states.

    read     i32[P, G], how far each text is into a stop string, or None
    hidden   [P, 1, S, C], the decoder's states of the prompts
    prefix   their keys and values
    lengths  i32[P], tokens of each prompt
    """

    out: Rollouts
    read: Int[Array, "P G"] | None
    hidden: Float[Array, "P 1 S C"]
    prefix: Any
    lengths: Int[Array, " P"]


@partial(jax.jit, static_argnames=("model", "sampling"))
def sample(
    model: Decoder,
    params: Params,
    prompts: Prompts,
    keys: Key[Array, "P G"],
    *,
    sampling: Sampling,
    stops: Int[Array, "N V"] | None = None,
) -> Rollouts:
    """Sample a completion of its prompt for each key; the same keys give the same Rollouts.

    Prompts are left-padded, each with at least one token. Token t's noise is of its completion's
    key, with t folded in. A completion stops at any of sampling.stop, or with the token that
    completes a stop string of the table `stops`; decoding ends when every one has stopped or after
    T = sampling.max_tokens.
    """
    if model.config.lora.base == "none":
        params = merge_adapters(model.config, params)  # once, not at every token
    P, G, T = *keys.shape, sampling.max_tokens
    out, read, _, prefix, lengths = start(model, params, prompts, keys, sampling, stops)

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
        return t + 1, *_emit(out, read, logits, t, sampling, keys, stops), cache

    cache = init_cache(model.config, P, G, T)
    return jax.lax.while_loop(unfinished, step, (jnp.int32(1), out, read, cache))[1]


def start(
    model: Decoder,
    params: Params,
    prompts: Prompts,
    keys: Key[Array, "P G"],
    sampling: Sampling,
    stops: Int[Array, "N V"] | None,
) -> Start:
    """Forward the prompts, and draw the first token of every completion."""
    P, G = keys.shape
    hidden, prefix, lengths = prefill(model, params, prompts)
    logits: Any = model.apply({"params": params}, hidden[:, :, -1:], method=Decoder.logits)
    logits = jnp.broadcast_to(logits, (P, G, *logits.shape[2:]))[:, :, 0]
    read = None if stops is None else jnp.full((P, G), START)  # what is known of the text
    empty = _empty(prompts, G, sampling.max_tokens)
    out, read = _emit(empty, read, logits, 0, sampling, keys, stops)
    return Start(out, read, hidden, prefix, lengths)


def noise(keys: Key[Array, "P G"], position: Int[Array, "..."] | int) -> Key[Array, "P G"]:
    """The keys of a position i32[] of all completions, or of each one's own i32[P, G]."""
    at = jnp.broadcast_to(position, keys.shape)
    return jax.vmap(jax.vmap(jax.random.fold_in))(keys, at)


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


def _emit(out: Rollouts, read, logits, t, sampling: Sampling, keys, stops):
    """Draw token t of every completion that has not stopped; logits f32[P, G, V].

    read i32[P, G], the states of the table `stops`, is returned too; both are None without one.
    """
    active: Bool[Array, "P G"] = ~out.finished
    tokens, logp, entropy = draw(logits, sampling, noise(keys, t))

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
