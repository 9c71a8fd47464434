"""Speculative decoding: the multi-token prediction layer drafts, the decoder checks two at once.

A completion of n tokens y_0 .. y_{n-1} has n - 1 entries in the decoder's cache: its newest token
is yet to be forwarded. One iteration, every completion at its own n, with g(n) the noise of its
position n:

    draft    d ~ q by the noise g(n), from y_{n-1} and the state that predicted it
    check    the decoder forwards [y_{n-1}, d]: p, of the next token, and p', of the one after d
    take     y_n ~ p by the noise g(n); where it is d, y_{n+1} ~ p' by the noise g(n+1)

Token and draft are drawn with the same noise, argmax log p + g and argmax log q + g, so that they
agree often, and every token is the one that plain decoding draws (2211.17192 has drafts accepted at
random instead, more often, for other tokens of the same distribution; DeepSeek-V3, 2412.19437,
5.4.3, drafts so).
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from grpo_jax.engines.filters import Sampling, pick, token_logps
from grpo_jax.engines.lockstep import noise, start
from grpo_jax.engines.stops import advance
from grpo_jax.models.decoder import Decoder, init_cache, layer_cache
from grpo_jax.models.forward import draft_prefix
from grpo_jax.models.lora import merge_adapters
from grpo_jax.types import Params, Prompts, Rollouts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speculative:
    """The engine that drafts with the model's multi-token prediction layer.

    stops  the table of stop strings (`engines.stops`), or None

    ValueError for a model without such a layer.
    """

    model: Decoder
    stops: Int[Array, "N V"] | None = None

    def __post_init__(self) -> None:
        """Check the model."""
        check_drafts(self.model)

    def generate(
        self, params: Params, prompts: Prompts, keys: Key[Array, "P G"], sampling: Sampling
    ) -> Rollouts:
        """A completion for each key; compiles once for each shape and sampling."""
        return speculate(self.model, params, prompts, keys, sampling=sampling, stops=self.stops)

    def metrics(self, rollouts: Rollouts) -> dict[str, float]:
        """As `speculation_metrics`."""
        return speculation_metrics(rollouts)


def check_drafts(model: Decoder) -> None:
    """ValueError, naming the fields, for a model without a layer that drafts."""
    if not model.config.mtp:
        raise ValueError(
            "rollout.engine='speculative' needs a layer that drafts: model.mtp=1, "
            f"not {model.config.mtp}"
        )


def speculation_metrics(rollouts: Rollouts) -> dict[str, float]:
    """Of speculated Rollouts on the host.

    speculative/acceptance_rate   drafts that were accepted
    speculative/tokens_per_step   tokens a completion gains by one pass of the decoder, 1 to 2
    """
    passes = max(int(rollouts.extras["drafted"].sum()), 1)
    gained = int(rollouts.mask[..., 1:].sum())  # the first token is the prefill's
    return {
        "speculative/acceptance_rate": int(rollouts.extras["accepted"].sum()) / passes,
        "speculative/tokens_per_step": gained / passes,
    }


class _Prompt(NamedTuple):
    """Prompt lengths i32[P, 1, 1]; Prefix and mask of the decoder, and of the drafting layer."""

    lengths: jax.Array
    decoder: tuple[Any, Any]
    draft: tuple[Any, Any]


class _Carry(NamedTuple):
    """What an iteration leaves to the next.

    out     the Rollouts so far
    length  i32[P, G], tokens of each completion; n
    seen    i32[P, G], those that the drafting layer has forwarded: all except the newest 1 or 2
    hidden  [P, G, 2, C], the decoder's states that predicted tokens `seen`, `seen` + 1; where only
            one is new, the second is of no use
    cache   of the decoder; entries past n - 1 are overwritten before anything sees them
    drafts  the cache of the drafting layer; the same holds past `seen`
    read    i32[P, G], the states of the table of stop strings, or None
    """

    out: Rollouts
    length: jax.Array
    seen: jax.Array
    hidden: jax.Array
    cache: Any
    drafts: Any
    read: jax.Array | None


@partial(jax.jit, static_argnames=("model", "sampling"))
def speculate(
    model: Decoder,
    params: Params,
    prompts: Prompts,
    keys: Key[Array, "P G"],
    *,
    sampling: Sampling,
    stops: Int[Array, "N V"] | None = None,
) -> Rollouts:
    """As `lockstep.sample`, and the same tokens; extras count those "drafted" and "accepted"."""
    if model.config.lora.base == "none":
        params = merge_adapters(model.config, params)  # once, not at every token
    c, (P, G), T = model.config, keys.shape, sampling.max_tokens
    out, read, hidden, prefix, _ = start(model, params, prompts, keys, sampling, stops)
    prompt = _Prompt(
        prompts.mask.sum(-1)[:, None, None],
        (prefix, prompts.mask),
        draft_prefix(model, params, prompts, hidden),
    )

    def step(s: _Carry) -> _Carry:
        first, second = (noise(keys, s.length + i) for i in range(2))
        q, drafts = _draft(model, params, prompt, s)
        draft = pick(q, sampling, first)
        p, states, cache = _check(model, params, prompt, s, draft)
        tokens = jnp.stack(
            [pick(p[:, :, 0], sampling, first), pick(p[:, :, 1], sampling, second)], -1
        )
        accepted = tokens[..., 0] == draft
        out, length, read = _emit(s, tokens, accepted, p, sampling, stops)
        return _Carry(out, length, s.length, states, cache, drafts, read)

    none = jnp.zeros((P, G), jnp.int32)
    first = _Carry(
        out.replace(extras={"drafted": none, "accepted": none}),
        none + 1,
        none,
        jnp.broadcast_to(hidden[:, :, -1:], (P, G, 2, c.hidden)),
        # An idle completion of T tokens writes its last and one more.
        init_cache(c, P, G, T + 1),
        layer_cache(c, P, G, T + 1),
        read,
    )
    going = lambda s: (~s.out.finished & (s.length < T)).any()  # noqa: E731
    return jax.lax.while_loop(going, step, first).out


def _draft(model: Decoder, params, prompt: _Prompt, s: _Carry):
    """Logits f32[P, G, V] of the token after the newest, and the drafting layer's cache."""
    prefix, prefix_mask = prompt.draft
    states, drafts = model.apply(
        {"params": params},
        s.hidden,
        _two(s.out, s.seen),
        prompt.lengths - 1 + s.seen[..., None] + jnp.arange(2),
        prefix=prefix,
        prefix_mask=prefix_mask,
        cache=s.drafts,
        index=s.seen,
        method=Decoder.next_token,
    )
    newest = (s.length - s.seen - 1)[..., None, None]
    newest = jnp.take_along_axis(states, newest, axis=2)[:, :, 0]
    return model.apply({"params": params}, newest, method=Decoder.logits), drafts


def _check(model: Decoder, params, prompt: _Prompt, s: _Carry, draft):
    """Logits f32[P, G, 2, V] after the newest token and after the draft; states and cache."""
    last = s.length - 1
    prefix, prefix_mask = prompt.decoder
    states, cache = model.apply(
        {"params": params},
        jnp.stack([_two(s.out, last)[..., 0], draft], -1),
        prompt.lengths + last[..., None] + jnp.arange(2),
        prefix=prefix,
        prefix_mask=prefix_mask,
        cache=s.cache,
        index=last,
    )
    return model.apply({"params": params}, states, method=Decoder.logits), states, cache


def _two(out: Rollouts, start):
    """Tokens i32[P, G, 2] at start i32[P, G] and start + 1; past the end, the last."""
    return jnp.take_along_axis(out.tokens, start[..., None] + jnp.arange(2), -1, mode="clip")


def _emit(s: Any, tokens, accepted, logits, sampling: Sampling, stops):
    """Rollouts with one or two more tokens a completion, their lengths i32[P, G] and `read`.

    tokens i32[P, G, 2], drawn from logits f32[P, G, 2, V]; the second is real where the draft was
    accepted, unless the first stops the completion or fills it.
    """
    out, length, T = s.out, s.length, s.out.tokens.shape[-1]
    active = ~out.finished & (length < T)
    stopped = jnp.isin(tokens, jnp.array(sampling.stop, jnp.int32))
    if stops is not None:
        first, ended = advance(stops, s.read, tokens[..., 0])
        second, ended_too = advance(stops, first, tokens[..., 1])
        stopped |= jnp.stack([ended, ended_too], -1)
    more = active & accepted & ~stopped[..., 0] & (length + 1 < T)
    kept = jnp.stack([active, more], -1)
    at = (jnp.arange(T) == length[..., None, None] + jnp.arange(2)[:, None]) & kept[..., None]

    def put(array, values):
        for i in range(2):
            array = jnp.where(at[:, :, i], values[:, :, i, None], array)
        return array

    logp, entropy = token_logps(logits, tokens, sampling)
    out = out.replace(
        tokens=put(out.tokens, tokens),
        mask=out.mask | at.any(2),
        logp=put(out.logp, logp),
        entropy=put(out.entropy, entropy),
        finished=out.finished | (kept & stopped).any(-1),
        extras={
            "drafted": out.extras["drafted"] + active,
            "accepted": out.extras["accepted"] + (active & accepted),
        },
    )
    read = None if stops is None else jnp.where(more, second, first)
    return out, length + kept.sum(-1), read
