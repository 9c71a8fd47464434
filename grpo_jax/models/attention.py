"""Attention in two parts: the group's one copy of the prompt, and each completion's own past.

Letters: P prompts, G group, K key-value heads, R query heads per key-value head, T queries,
U own keys, S prompt length, D head width, C hidden width.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.linear import Linear

MASKED = -1e30


class Prefix(struct.PyTreeNode):
    """A prompt's keys [P, K, D, S] and values [P, K, S, D] in one layer."""

    k: jax.Array
    v: jax.Array


class Cache(struct.PyTreeNode):
    """A completion's own keys [P, K, G, D, U] and values [P, K, G, U, D] in one layer."""

    k: jax.Array
    v: jax.Array


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding (RoFormer, 2104.09864), halves convention.

    x [P, G, T, N, D] for any number of heads N; positions i32[P, G or 1, T].
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) * frequency  # [P, G, T, 1, D/2]
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(
    q: jax.Array,
    own: Cache,
    own_mask: jax.Array,
    prefix: Prefix | None = None,
    prefix_mask: jax.Array | None = None,
) -> jax.Array:
    """One softmax over the shared prefix and the own past: softmax(q [K_p K_o]) [V_p V_o].

    q [P, K, G, R, T, D], scaled; own k [P, K, G, D, U], v [P, K, G, U, D]; own_mask bool,
    broadcastable to [P, K, G, T, U]; prefix k [P, K, D, S], v [P, K, S, D]; prefix_mask
    bool[P, S]. Returns [P, K, G, R, T, D].

    The prefix product folds G, R and T into the rows of one matrix, so the prompt's keys and
    values are read once per group. A query must see at least one key.
    """
    P, K, G, R, T, D = q.shape
    U = own.v.shape[3]
    chex.assert_shape([own.k, own.v], [(P, K, G, D, U), (P, K, G, U, D)])
    logits = _products(q.reshape(P, K, G, R * T, D), own.k)
    logits = logits.reshape(P, K, G, R, T, U)
    logits = jnp.where(own_mask[:, :, :, None], logits, MASKED)
    top = logits.max(-1)
    if prefix is not None:
        assert prefix_mask is not None, "a prefix comes with its mask"
        S = prefix.v.shape[2]
        chex.assert_shape([prefix.k, prefix.v], [(P, K, D, S), (P, K, S, D)])
        pre = _products(q.reshape(P, K, G * R * T, D), prefix.k)
        pre = jnp.where(prefix_mask[:, None, None], pre, MASKED)
        top = jnp.maximum(top, pre.max(-1).reshape(P, K, G, R, T))
    top = jax.lax.stop_gradient(top)  # the softmax does not depend on the shift
    weight = jnp.exp(logits - top[..., None])
    total = weight.sum(-1)
    out = _products(weight.reshape(P, K, G, R * T, U).astype(q.dtype), own.v)
    out = out.reshape(P, K, G, R, T, D)
    if prefix is not None:
        weight = jnp.exp(pre - top.reshape(P, K, G * R * T)[..., None])
        total += weight.sum(-1).reshape(P, K, G, R, T)
        out += _products(weight.astype(q.dtype), prefix.v).reshape(P, K, G, R, T, D)
    return (out / total[..., None]).astype(q.dtype)


def _products(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


class Attention(nn.Module):
    """Grouped-query attention (2305.13245) with rotary positions."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, prefix, cache, positions, mask, prefix_mask, index):
        """x [N, C], N = P G T in that order -> ([N, C], this layer's keys and values)."""
        c = self.config
        P, T = positions.shape[0], positions.shape[2]
        G = x.shape[0] // (P * T)
        K, R, D = c.kv_heads, c.heads // c.kv_heads, c.head_dim
        q = Linear(c, c.heads * D, ("heads", "embed"), name="q")(x).reshape(P, G, T, c.heads, D)
        k = Linear(c, K * D, ("kv_heads", "embed"), name="k")(x).reshape(P, G, T, K, D)
        v = Linear(c, K * D, ("kv_heads", "embed"), name="v")(x).reshape(P, G, T, K, D)
        q = rotate(q, positions, c.rope_theta) * D**-0.5
        k = rotate(k, positions, c.rope_theta)
        q = q.reshape(P, G, T, K, R, D).transpose(0, 3, 1, 4, 2, 5)
        own = Cache(k.transpose(0, 3, 1, 4, 2), v.transpose(0, 3, 1, 2, 4))
        if cache is not None:
            put = jax.lax.dynamic_update_slice_in_dim
            own = Cache(put(cache.k, own.k, index, axis=4), put(cache.v, own.v, index, axis=3))
        out = attend(q, own, mask, prefix, prefix_mask)
        out = out.transpose(0, 2, 4, 1, 3, 5).reshape(P * G * T, c.heads * D)
        return Linear(c, c.hidden, ("embed", "heads"), name="o")(out), own
