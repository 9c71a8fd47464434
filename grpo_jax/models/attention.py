"""Attention over the group's one copy of the prompt, and over each completion's own past.

Letters: P prompts, G group, Q the same or 1, K key-value heads, R query heads per key-value head,
T queries, U own keys, S prompt length, D head width (E of values), C hidden width.
"""

from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.linear import Linear, RMSNorm
from grpo_jax.models.products import matmul
from grpo_jax.models.rope import query_scale, rotate

MASKED = -1e30
EVERYTHING = 2**30  # a window as wide as any text


class Prefix(struct.PyTreeNode):
    """A prompt's keys [P, K, D, S] and values [P, K, S, E] in one layer.

    Latent attention keeps the latent and the shared rotary key as the one key, and no values.
    """

    k: Any
    v: Any


class Cache(struct.PyTreeNode):
    """A completion's own keys [P, K, G, D, U] and values [P, K, G, U, E] in one layer."""

    k: Any
    v: Any


class Context(struct.PyTreeNode):
    """What a forward pass gives every layer.

    rotations  cos and sin, as `rope.rotations` returns them
    own        broadcastable to [P, K, G, T, U]; the own keys that a query may see
    distance   broadcastable to the same; from a query back to an own key
    index      i32[], or i32[P, G], entries in the cache; None without one
    valid      the tokens that a router's load counts, or None
    """

    positions: Int[Array, "P Q T"]
    rotations: tuple[Float[Array, "kinds P Q T half"], Float[Array, "kinds P Q T half"]]
    own: Bool[Array, "..."]
    distance: Int[Array, "..."]
    prefix_mask: Bool[Array, "P S"] | None = None
    prefix_positions: Int[Array, "P S"] | None = None
    index: Any = None
    valid: Bool[Array, "P G T"] | None = None

    def rotation(
        self, local: "Local"
    ) -> tuple[Float[Array, "P Q T half"], Float[Array, "P Q T half"]]:
        """cos and sin of a layer's rotation."""
        return jax.tree.map(lambda part: part[local.rotation], self.rotations)


class Local(NamedTuple):
    """What differs from layer to layer.

    window    tokens back that it sees; None = all
    rotation  which of Context.rotations
    place     in a stack of layers, whose one cache it is given; None = the cache is the layer's
    """

    window: Any
    rotation: Any
    place: Any = None


def locals_of(c: ModelConfig, start: int, stop: int) -> list[Local]:
    """The Locals of layers start .. stop - 1, each by itself."""
    windows = [c.window(i) for i in range(start, stop)]
    wide = lambda window: np.int32(window or EVERYTHING) if any(windows) else None  # noqa: E731
    return [Local(wide(w), np.int32(w > 0 and c.rope_local_theta > 0)) for w in windows]


def stacked_locals(c: ModelConfig, start: int, stop: int) -> Local:
    """The Locals of layers start .. stop - 1 as one of arrays [layers], to scan over."""
    layers = [
        local._replace(place=np.int32(i)) for i, local in enumerate(locals_of(c, start, stop))
    ]
    return jax.tree.map(lambda *x: jnp.stack(x), *layers)


def visible(
    context: Context, window: Int[Array, ""] | None
) -> tuple[Bool[Array, "..."], Bool[Array, "..."] | None]:
    """Masks of own keys, [P, K, G, T, U], and of the prefix, [P, K, G, R, T, S], broadcastable."""
    own, prefix = context.own, context.prefix_mask
    if window is not None:
        own = own & (context.distance < window)
    if prefix is None:
        return own, None
    prefix = prefix[:, None, None, None, None]
    if window is not None:
        assert context.prefix_positions is not None
        back = context.positions[..., None] - context.prefix_positions[:, None, None]
        prefix = prefix & (back < window)[:, None, :, None]
    return own, prefix


def extend(
    cache: Cache,
    new: Cache,
    index: Int[Array, ""] | Int[Array, "P G"],
    place: Int[Array, ""] | None,
) -> tuple[Cache, Cache]:
    """Write `new` entries at `index`: the cache, and what it has of one layer.

    With a `place`, the cache is of a stack of layers, [layers, ...], and only new entries
    of that layer are written: XLA then updates it where it lies, step for step.
    """

    def put(old, entries, axis):  # both None in latent attention's values
        if old is None:
            return None
        return append(old, entries, index, axis, place)

    cache = Cache(put(cache.k, new.k, 4), put(cache.v, new.v, 3))
    if place is None:
        return cache, cache
    layer = lambda x: jax.lax.dynamic_index_in_dim(x, place, keepdims=False)  # noqa: E731
    return cache, jax.tree.map(layer, cache)


def append(
    cache: Float[Array, "..."],
    new: Float[Array, "P K G ..."],
    index: Int[Array, ""] | Int[Array, "P G"],
    axis: int,
    place: Int[Array, ""] | None,
) -> Float[Array, "..."]:
    """Write `new` into `cache`, which is like it, or [layers, P, K, G, ...] with a place, along
    `axis` of `new` at `index`."""
    lead = int(place is not None)
    new = new[None] if lead else new

    def put(cache, new, index, axis):
        start: list[Any] = [0] * cache.ndim
        start[axis] = index
        if lead:
            start[0] = place
        return jax.lax.dynamic_update_slice(cache, new, start)

    if index.ndim == 0:
        return put(cache, new, index, axis + lead)
    row = lambda c, n, i: put(c, n, i, axis - 2 + lead)  # noqa: E731
    rows = jax.vmap(row, (1 + lead, 1 + lead, 0), 1 + lead)
    return jax.vmap(rows, (lead, lead, 0), lead)(cache, new, index)


def attend(
    q: Float[Array, "P K G R T D"],
    own: Cache,
    own_mask: Bool[Array, "..."],
    prefix: Prefix | None = None,
    prefix_mask: Bool[Array, "..."] | None = None,
    softcap: float = 0.0,
) -> Float[Array, "P K G R T E"]:
    """One softmax over the shared prefix and the own past: softmax(q [K_p K_o]) [V_p V_o].

    q            scaled
    own_mask     broadcastable to [P, K, G, T, U]
    prefix_mask  broadcastable to [P, K, G, R, T, S]

    The prefix product folds G, R and T into the rows of one matrix, so the prompt's keys and
    values are read once per group. A query must see at least one key.
    """
    P, K, G, R, T, D = q.shape
    U, E = own.v.shape[3:]
    chex.assert_shape([own.k, own.v], [(P, K, G, D, U), (P, K, G, U, E)])
    logits = _capped(matmul(q.reshape(P, K, G, R * T, D), own.k), softcap)
    logits = logits.reshape(P, K, G, R, T, U)
    logits = jnp.where(own_mask[:, :, :, None], logits, MASKED)
    top = logits.max(-1)
    if prefix is not None:
        assert prefix_mask is not None, "a prefix comes with its mask"
        S = prefix.v.shape[2]
        chex.assert_shape([prefix.k, prefix.v], [(P, K, D, S), (P, K, S, E)])
        pre = _capped(matmul(q.reshape(P, K, G * R * T, D), prefix.k), softcap)
        pre = jnp.where(prefix_mask, pre.reshape(P, K, G, R, T, S), MASKED)
        top = jnp.maximum(top, pre.max(-1))
    top = jax.lax.stop_gradient(top)  # the softmax does not depend on the shift
    weight = jnp.exp(logits - top[..., None])
    total = weight.sum(-1)
    out = matmul(weight.reshape(P, K, G, R * T, U).astype(q.dtype), own.v)
    out = out.reshape(P, K, G, R, T, E)
    if prefix is not None:
        weight = jnp.exp(pre - top[..., None])
        total += weight.sum(-1)
        weight = weight.reshape(P, K, G * R * T, S).astype(q.dtype)
        out += matmul(weight, prefix.v).reshape(P, K, G, R, T, E)
    return (out / total[..., None]).astype(q.dtype)


def _capped(logits: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    return cap * jnp.tanh(logits / cap) if cap else logits


class Attention(nn.Module):
    """Grouped-query attention (2305.13245) with rotary positions."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N C"],
        prefix: Prefix | None,
        cache: Cache | None,
        local: Local,
        context: Context,
    ) -> tuple[Float[Array, "N C"], Cache]:
        """x, N = P G T in that order -> the same, and keys and values or the cache with them."""
        c = self.config
        P, T = context.positions.shape[0], context.positions.shape[2]
        G = x.shape[0] // (P * T)
        K, R, D = c.kv_heads, c.heads // c.kv_heads, c.head_dim

        def heads(name, count, axis):
            out = Linear(c, c.hidden, count * D, (axis, "embed"), c.qkv_bias, name=name)(x)
            return out.reshape(P, G, T, count, D)

        q, k, v = heads("q", c.heads, "heads"), heads("k", K, "kv_heads"), heads("v", K, "kv_heads")
        if c.qk_norm:
            q, k = RMSNorm(c, name="q_norm")(q), RMSNorm(c, name="k_norm")(k)
        rotation = context.rotation(local)
        q = rotate(q, rotation, c.rope_interleaved) * query_scale(c)
        k = rotate(k, rotation, c.rope_interleaved)
        q = q.reshape(P, G, T, K, R, D).transpose(0, 3, 1, 4, 2, 5)
        own = kept = Cache(k.transpose(0, 3, 1, 4, 2), v.transpose(0, 3, 1, 2, 4))
        if cache is not None:
            kept, own = extend(cache, own, context.index, local.place)
        own_mask, prefix_mask = visible(context, local.window)
        out = attend(q, own, own_mask, prefix, prefix_mask, c.attention_softcap)
        out = out.transpose(0, 2, 4, 1, 3, 5).reshape(P * G * T, c.heads * D)
        project = Linear(c, c.heads * D, c.hidden, ("embed", "heads"), c.out_bias, name="o")
        return project(out), kept
