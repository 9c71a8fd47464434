"""One decoder that serves prefill, decode and score.

    prefill   tokens [P, 1, S], mask                     -> hidden, the prompt's keys and values
    decode    tokens [P, G, 1], prefix, cache at index   -> hidden, the cache with one more entry
    score     tokens [P, G, T], prefix                   -> hidden, (own keys and values)

Letters: P prompts, G group, S prompt length, T completion length, C hidden width, V vocabulary.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from grpo_jax.models.attention import Attention, Cache, Prefix
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.linear import Linear, project
from grpo_jax.types import Prompts


class FeedForward(nn.Module):
    """SwiGLU (2002.05202): down(silu(gate x) * up x)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        """x [N, C] -> [N, C]."""
        c = self.config
        gate = Linear(c, c.ff, ("mlp", "embed"), name="gate")(x)
        up = Linear(c, c.ff, ("mlp", "embed"), name="up")(x)
        return Linear(c, c.hidden, ("embed", "mlp"), name="down")(nn.silu(gate) * up)


def _norm(c: ModelConfig, name: str) -> nn.RMSNorm:
    return nn.RMSNorm(
        epsilon=c.norm_eps,
        dtype=c.dtype,
        param_dtype=c.param_dtype,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
        name=name,
    )


class Block(nn.Module):
    """Pre-norm transformer layer."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, prefix, cache, *rest):
        """x [N, C] -> ([N, C], this layer's keys and values)."""
        c = self.config
        h, kv = Attention(c, name="attention")(_norm(c, "attention_norm")(x), prefix, cache, *rest)
        x = nn.with_logical_constraint(x + h, ("tokens", "hidden"))
        x = x + FeedForward(c, name="ff")(_norm(c, "ff_norm")(x))
        return nn.with_logical_constraint(x, ("tokens", "hidden")), kv


class Decoder(nn.Module):
    """A decoder-only transformer: tokens in, normalised hidden states and keys and values out."""

    config: ModelConfig

    def setup(self):
        """Declare the embedding, the layers, the last norm and the head."""
        c = self.config
        self.embed = nn.Embed(
            c.vocab_size,
            c.hidden,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            embedding_init=nn.with_logical_partitioning(
                nn.initializers.normal(0.02 if c.tied else 1.0), ("vocab", "embed")
            ),
        )
        block: Any = Block
        if c.remat != "none":
            policy = jax.checkpoint_policies.checkpoint_dots if c.remat == "dots" else None
            block = nn.remat(Block, policy=policy, prevent_cse=not c.scan_layers)
        if c.scan_layers:
            self.layers: Any = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, 0, *[nn.broadcast] * 4),
                length=c.layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(c)
        else:
            self.layers = [block(c, name=f"layer_{i}") for i in range(c.layers)]
        self.norm = _norm(c, "norm")
        if not c.tied:
            self.head = self.param(
                "head",
                nn.with_logical_partitioning(
                    nn.initializers.lecun_normal(in_axis=-1, out_axis=-2), ("vocab", "embed")
                ),
                (c.vocab_size, c.hidden),
                c.param_dtype,
            )

    def __call__(
        self, tokens, positions, mask=None, prefix=None, prefix_mask=None, cache=None, index=None
    ):
        """Forward T tokens of every completion.

        tokens       i32[P, G, T]
        positions    i32[P, G or 1, T], rotary positions
        mask         bool[P, T] or None, True on real tokens (left-padded prompts)
        prefix       keys and values of the prompt, as `as_prefix` returns them, or None
        prefix_mask  bool[P, S], with `prefix`
        cache        keys and values of the own past, as `init_cache` returns them, or None
        index        i32[], with `cache`: the number of entries it holds

        Returns hidden [P, G, T, C], ready for `logits`, and the layers' Caches.
        """
        seen = _visible(tokens.shape[-1], mask, cache, index)
        # Tokens in one flat axis: what XLA multiplies fastest, forward and backward.
        x = self.embed(tokens.reshape(-1))
        rest = (positions, seen, prefix_mask, index)
        if self.config.scan_layers:
            x, kv = self.layers(x, prefix, cache, *rest)
        else:
            n = self.config.layers
            layers = zip(self.layers, prefix or (None,) * n, cache or (None,) * n, strict=True)
            kv = []
            for layer, layer_prefix, layer_cache in layers:
                x, own = layer(x, layer_prefix, layer_cache, *rest)
                kv.append(own)
            kv = tuple(kv)
        return self.norm(x).reshape(*tokens.shape, -1), kv

    def logits(self, hidden):
        """hidden [..., C] -> f32 logits [..., V]."""
        kernel = self.embed.embedding if self.config.tied else self.head
        return project(hidden, jnp.asarray(kernel, self.config.dtype))

    def initialise(self, tokens):
        """Touch every parameter; for `init` alone. tokens i32[P, G, T]."""
        positions = jnp.arange(tokens.shape[-1])[None, None]
        return self.logits(self(tokens, positions)[0])


def _visible(length, mask, cache, index):
    """Which own keys each query sees: bool, broadcastable to [P, K, G, T, U]."""
    if cache is not None:
        size = jax.tree.leaves(cache)[0].shape[-1]
        queries = index + jnp.arange(length)
    else:
        size, queries = length, jnp.arange(length)
    seen = (jnp.arange(size) <= queries[:, None])[None, None, None]
    if mask is not None:
        # A padded query sees only itself, so that its softmax is defined.
        seen &= mask[:, None, None, None] | jnp.eye(length, dtype=bool)
    return seen


def as_prefix(kv):
    """The Caches of a prefill (G = 1) as the Prefix of a group, layer by layer."""
    is_cache = lambda x: isinstance(x, Cache)  # noqa: E731
    return jax.tree.map(
        lambda c: Prefix(jnp.squeeze(c.k, -3), jnp.squeeze(c.v, -3)), kv, is_leaf=is_cache
    )


def init_cache(c: ModelConfig, prompts: int, group: int, length: int):
    """Empty Caches for `length` own tokens of every completion."""
    batch, D = (prompts, c.kv_heads, group), c.head_dim
    shapes = (*batch, D, length), (*batch, length, D)
    zeros = lambda lead: Cache(*(jnp.zeros(lead + s, c.dtype) for s in shapes))  # noqa: E731
    return zeros((c.layers,)) if c.scan_layers else tuple(zeros(()) for _ in range(c.layers))


def prefill(model: Decoder, params, prompts: Prompts):
    """Forward every prompt once: last hidden state [P, 1, 1, C], prefix, prompt lengths i32[P]."""
    positions = jnp.maximum(jnp.cumsum(prompts.mask, -1) - 1, 0)
    hidden, kv = model.apply(
        {"params": params}, prompts.tokens[:, None], positions[:, None], mask=prompts.mask
    )
    return hidden[:, :, -1:], as_prefix(kv), prompts.mask.sum(-1)


def completion_hidden(model: Decoder, params, prompts: Prompts, tokens: jax.Array) -> jax.Array:
    """Hidden states [P, G, T, C] that predict each completion token; the prompt is forwarded once.

    tokens i32[P, G, T], right-padded. Gradients flow through the shared prompt.
    """
    P, G, T = tokens.shape
    last, prefix, lengths = prefill(model, params, prompts)
    positions = lengths[:, None, None] + jnp.arange(T)
    hidden, _ = model.apply(
        {"params": params}, tokens, positions, prefix=prefix, prefix_mask=prompts.mask
    )
    first = jnp.broadcast_to(last, (P, G, 1, last.shape[-1]))
    return jnp.concatenate([first, hidden[:, :, :-1]], axis=2)
