"""Speculative decoding: the multi-token prediction layer drafts, the decoder checks two at once.

A completion of n tokens y_0 .. y_{n-1} has n - 1 entries in the decoder's cache: its newest token
is yet to be forwarded. One iteration, every completion at its own n:

    draft    d ~ q, by the layer, from the state that predicted y_{n-1} and y_{n-1} itself
    check    the decoder forwards [y_{n-1}, d]: p, of the next token, and p', of the one after d
    accept   with probability min(1, p(d) / q(d)): y_n = d and y_{n+1} ~ p'
    reject   otherwise: y_n ~ max(p - q, 0), normalised, which makes y_n ~ p in all

(Leviathan et al., 2211.17192, algorithm 1, one token ahead; DeepSeek-V3, 2412.19437, 5.4.3).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grpo_jax.engines.filters import Sampling, drawable, pick, policy
from grpo_jax.engines.stops import advance
from grpo_jax.models.decoder import Decoder, init_cache, layer_cache
from grpo_jax.models.score import draft_prefix
from grpo_jax.types import Rollouts


def check_drafts(model: Decoder) -> None:
    """ValueError, naming the fields, for a model without a layer that drafts."""
    if not model.config.mtp:
        raise ValueError(
            "rollout.speculative=True needs a layer that drafts: model.mtp=1, "
            f"not {model.config.mtp}"
        )


def speculation_metrics(rollouts: Rollouts) -> dict[str, float]:
    """Of Rollouts on the host, drafted by speculation; {} of others.

    speculative/acceptance_rate   drafts that were accepted
    speculative/tokens_per_step   tokens a completion gains by one pass of the decoder, 1 to 2
    """
    if rollouts.drafted is None or rollouts.accepted is None:
        return {}
    passes = max(int(rollouts.drafted.sum()), 1)
    gained = int(rollouts.mask[..., 1:].sum())  # the first token is the prefill's
    return {
        "speculative/acceptance_rate": int(rollouts.accepted.sum()) / passes,
        "speculative/tokens_per_step": gained / passes,
    }


class _Prompt(NamedTuple):
    """Prompt lengths i32[P, 1, 1]; Prefix and mask of the decoder, and of the drafting layer."""

    lengths: jax.Array
    decoder: tuple[Any, Any]
    draft: tuple[Any, Any]


class _Carry(NamedTuple):
    """What an iteration leaves to the next.

    step    i32[], iterations made, and one
    out     the Rollouts so far
    length  i32[P, G], tokens of each completion; n
    seen    i32[P, G], those that the drafting layer has forwarded: all but the newest 1 or 2
    hidden  [P, G, 2, C], the decoder's states that predicted tokens `seen`, `seen` + 1; where only
            one is new, the second is of no use
    cache   of the decoder; entries past n - 1 are overwritten before anything sees them
    drafts  the cache of the drafting layer; the same holds past `seen`
    read    i32[P, G], the states of the table of stop strings, or None
    """

    step: jax.Array
    out: Rollouts
    length: jax.Array
    seen: jax.Array
    hidden: jax.Array
    cache: Any
    drafts: Any
    read: jax.Array | None


def speculate(
    model: Decoder,
    params,
    out: Rollouts,
    hidden,
    prefix,
    watch: tuple[jax.Array | None, jax.Array | None],
    *,
    sampling: Sampling,
    rng: jax.Array,
) -> Rollouts:
    """Complete Rollouts that have their first token; distributed as plain decoding would.

    hidden [P, 1, S, C] and prefix, the prompts', as `prefill` returns them; watch, the table of
    stop strings and its states i32[P, G], or Nones; rng a PRNG key, which every iteration folds its
    number, from 1, into. Counts `drafted` and `accepted`.
    """
    c, (P, G, T) = model.config, out.tokens.shape
    stops, read = watch
    prompt = _Prompt(
        out.prompts.mask.sum(-1)[:, None, None],
        (prefix, out.prompts.mask),
        draft_prefix(model, params, out.prompts, hidden),
    )

    def step(s: _Carry) -> _Carry:
        keys = jax.random.split(jax.random.fold_in(rng, s.step), 3)
        q, drafts = _draft(model, params, prompt, s)
        draft = pick(q, sampling, keys[0])
        p, states, cache = _check(model, params, prompt, s, draft)
        accepted, first = judge(p[:, :, 0], q, draft, sampling, keys[1])
        tokens = jnp.stack([first, pick(p[:, :, 1], sampling, keys[2])], -1)
        out, length, read = _emit(s, tokens, accepted, p, sampling, stops)
        return _Carry(s.step + 1, out, length, s.length, states, cache, drafts, read)

    none = jnp.zeros((P, G), jnp.int32)
    first = _Carry(
        jnp.int32(1),
        out.replace(drafted=none, accepted=none),
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


def judge(p, q, draft, sampling: Sampling, rng: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether drafts are accepted, bool[...], and the tokens i32[...] that are taken.

    p, q f32[..., V], logits of the policy and of what drew the drafts i32[...]. A token is
    distributed as `pick` would draw it from p; greedy, it is the likeliest, drafted or not.
    """
    if sampling.temperature == 0:
        best = p.argmax(-1).astype(jnp.int32)
        return best == draft, best
    chance, replace = jax.random.split(rng)
    p, q = (jax.nn.softmax(drawable(x, sampling)) for x in (p, q))
    of_draft = lambda x: jnp.take_along_axis(x, draft[..., None], -1)[..., 0]  # noqa: E731
    accepted = jax.random.uniform(chance, draft.shape) * of_draft(q) < of_draft(p)
    rest = jnp.maximum(p - q, 0.0)
    # Where p is q up to rounding, nothing may be left for what rounding has rejected.
    rest = jnp.where(rest.any(-1, keepdims=True), rest, p)
    other = jax.random.categorical(replace, jnp.log(rest)).astype(jnp.int32)
    return accepted, jnp.where(accepted, draft, other)


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

    logp, entropy = policy(logits, tokens, sampling)
    out = out.replace(
        tokens=put(out.tokens, tokens),
        mask=out.mask | at.any(2),
        logp=put(out.logp, logp),
        entropy=put(out.entropy, entropy),
        finished=out.finished | (kept & stopped).any(-1),
        drafted=out.drafted + active,
        accepted=out.accepted + (active & accepted),
    )
    read = None if stops is None else jnp.where(more, second, first)
    return out, length + kept.sum(-1), read
