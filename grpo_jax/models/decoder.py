"""One decoder for three uses: prefill, decode, and forward, the pass that the loss is of.

    prefill   tokens [P, 1, S], mask                     -> hidden, the prompt's keys and values
    decode    tokens [P, G, 1], prefix, cache at index   -> hidden, the cache with one more entry
    forward   tokens [P, G, T], prefix                   -> hidden, (own keys and values)

Letters: P prompts, G group, Q the same or 1, S prompt length, T completion length, C hidden width,
V vocabulary.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.models.attention import (
    Attention,
    Cache,
    Context,
    Local,
    Prefix,
    locals_of,
    stacked_locals,
)
from grpo_jax.models.config import ModelConfig, Segment
from grpo_jax.models.experts import ROUTING, MixtureOfExperts
from grpo_jax.models.feed_forward import FeedForward
from grpo_jax.models.latent import LatentAttention
from grpo_jax.models.linear import Linear, RMSNorm
from grpo_jax.models.products import project
from grpo_jax.models.rope import rotations
from grpo_jax.types import Params, Prompts

CHECKPOINTS = {
    "full": None,
    "dots": jax.checkpoint_policies.checkpoint_dots,
    "dots_no_batch": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
}


class Block(nn.Module):
    """Pre-norm transformer layer."""

    config: ModelConfig
    sparse: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "N C"],
        prefix: Prefix | None,
        cache: Cache | None,
        local: Local,
        context: Context,
    ) -> tuple[Float[Array, "N C"], Cache]:
        """What the layer makes of x, and its keys and values or the cache with them."""
        c = self.config
        attention: Any = LatentAttention if c.latent.kv_rank else Attention
        norm = lambda name, x: RMSNorm(c, name=name)(x)  # noqa: E731
        h, kv = attention(c, name="attention")(
            norm("attention_norm", x), prefix, cache, local, context
        )
        if c.post_norms:
            h = norm("attention_post_norm", h)
        x = nn.with_logical_constraint(x + h, ("tokens", "hidden"))
        h = norm("ff_norm", x)
        if self.sparse:
            h = MixtureOfExperts(c, name="ff")(h, context.valid)
        else:
            h = FeedForward(c, c.ff, name="ff")(h)
        if c.post_norms:
            h = norm("ff_post_norm", h)
        return nn.with_logical_constraint(x + h, ("tokens", "hidden")), kv

    def stacked(
        self,
        carry: tuple[Float[Array, "N C"], Cache | None],
        prefix: Prefix | None,
        local: Local,
        context: Context,
    ) -> tuple[tuple[Float[Array, "N C"], Cache | None], Cache | None]:
        """As one of a stack, to scan over: carry (x, cache or None) -> (the same, keys and values
        or None). The cache goes from layer to layer whole, for each to write its own entries:
        sliced and stacked again, it would be copied at every step."""
        x, cache = carry
        x, kv = self(x, prefix, cache, local, context)
        return ((x, None), kv) if cache is None else ((x, kv), None)


class NextToken(nn.Module):
    """Multi-token prediction (DeepSeek-V3, 2412.19437, eq. 21 to 23): one more layer that sees
    the hidden state of a token and the token after it, and predicts the one after that."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        hidden: Float[Array, "N C"],
        following: Float[Array, "N C"],
        prefix: Prefix | None,
        cache: Cache | None,
        context: Context,
    ) -> tuple[Float[Array, "N C"], Cache]:
        """Hidden states that predict the token after the next, and keys and values.

        following  embeddings of the next tokens
        """
        c = self.config
        both = [RMSNorm(c, name="embed_norm")(following), RMSNorm(c, name="hidden_norm")(hidden)]
        join = Linear(c, 2 * c.hidden, c.hidden, ("embed", None), name="join")
        last = c.layers - 1
        (local,) = locals_of(c, last, last + 1)
        layer = Block(c, c.sparse(last), name="layer")
        x, kv = layer(join(jnp.concatenate(both, -1)), prefix, cache, local, context)
        return RMSNorm(c, name="norm")(x), kv


class Decoder(nn.Module):
    """A decoder-only transformer: tokens in, normalised hidden states and keys and values out."""

    config: ModelConfig

    def setup(self) -> None:
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
            block = nn.remat(Block, policy=CHECKPOINTS[c.remat], prevent_cse=not c.scan_layers)
        if c.scan_layers:
            self.stacks: Any = [self._stack(block, segment) for segment in c.segments()]
        else:
            self.layers = [block(c, c.sparse(i), name=f"layer_{i}") for i in range(c.layers)]
        self.norm = RMSNorm(c)
        if c.mtp:
            self.mtp = NextToken(c)
        if not c.tied:
            self.head = self.param(
                "head",
                nn.with_logical_partitioning(
                    nn.initializers.lecun_normal(in_axis=-1, out_axis=-2), ("vocab", "embed")
                ),
                (c.vocab_size, c.hidden),
                c.param_dtype,
            )

    def _stack(self, block: type[Block], segment: Segment) -> Block:
        return nn.scan(
            block,
            variable_axes={"params": 0, ROUTING: 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast),
            length=segment.stop - segment.start,
            metadata_params={nn.PARTITION_NAME: "layers"},
            methods=["stacked"],
        )(self.config, segment.sparse, name=segment.name)

    def __call__(
        self,
        tokens: Int[Array, "P G T"],
        positions: Int[Array, "P Q T"],
        mask: Bool[Array, "P T"] | None = None,
        prefix: tuple[Prefix, ...] | None = None,
        prefix_mask: Bool[Array, "P S"] | None = None,
        cache: tuple[Cache, ...] | None = None,
        index: Int[Array, ""] | Int[Array, "P G"] | None = None,
        valid: Bool[Array, "P G T"] | None = None,
    ) -> tuple[Float[Array, "P G T C"], tuple[Cache, ...]]:
        """Hidden states, ready for `logits`, and the layers' Caches, of T tokens a completion.

        positions    rotary positions
        mask         True on real tokens (left-padded prompts)
        prefix       keys and values of the prompt, as `as_prefix` returns them
        cache        keys and values of the own past, as `init_cache` returns them
        index        with `cache`: the number of entries it holds
        valid        the tokens that the load of experts counts
        """
        c = self.config
        context = _context(c, positions, mask, prefix_mask, cache, index, valid)
        # Tokens in one flat axis: what XLA multiplies fastest, forward and backward.
        x = self._embed(tokens.reshape(-1))
        parts: Any = self.stacks if c.scan_layers else self.layers
        none = (None,) * len(parts)
        kv = []
        for i, (part, pre, own) in enumerate(
            zip(parts, prefix or none, cache or none, strict=True)
        ):
            x, new = self._run(i, part, x, pre, own, context)
            kv.append(new)
        return self.norm(x).reshape(*tokens.shape, -1), tuple(kv)

    def _run(
        self,
        i: int,
        part: Any,
        x: Float[Array, "N C"],
        prefix: Prefix | None,
        cache: Cache | None,
        context: Context,
    ) -> tuple[Float[Array, "N C"], Cache]:
        """Segment i, a layer or a stack of them: x, and keys and values or the cache."""
        c = self.config
        if not c.scan_layers:
            (local,) = locals_of(c, i, i + 1)
            return part(x, prefix, cache, local, context)
        segment = c.segments()[i]
        local = stacked_locals(c, segment.start, segment.stop)
        (x, cache), kv = part.stacked((x, cache), prefix, local, context)
        return x, kv if cache is None else cache

    def _embed(self, tokens: Int[Array, " N"]) -> Float[Array, "N C"]:
        scale = self.config.hidden**0.5 if self.config.scale_embedding else 1.0
        x = self.embed(tokens)
        return x * jnp.asarray(scale, x.dtype) if scale != 1 else x

    def next_token(
        self,
        hidden: Float[Array, "P G T C"],
        following: Int[Array, "P G T"],
        positions: Int[Array, "P Q T"],
        prefix: Prefix | None = None,
        cache: Cache | None = None,
        **context: Array | None,
    ) -> tuple[Float[Array, "P G T C"], Cache]:
        """Hidden states that predict the token after the next, and their Cache.

        hidden as `__call__` returns them; following is each token's next; the rest as for
        `__call__`, prefix and cache of this one layer.
        """
        names = ("mask", "prefix_mask", "index", "valid")
        chosen = {name: context.get(name) for name in names}
        made = _context(self.config, positions, cache=cache, **chosen)
        flat = hidden.reshape(-1, hidden.shape[-1])
        x, kv = self.mtp(flat, self._embed(following.reshape(-1)), prefix, cache, made)
        return x.reshape(hidden.shape), kv

    def logits(self, hidden: Float[Array, "... C"]) -> Float[Array, "... V"]:
        """The logits of hidden states, in fp32."""
        c = self.config
        kernel = self.embed.embedding if c.tied else self.head
        out = project(hidden, kernel)
        return c.logit_softcap * jnp.tanh(out / c.logit_softcap) if c.logit_softcap else out

    def initialise(self, tokens: Int[Array, "P G T"]) -> Float[Array, "P G T V"]:
        """Touch every parameter; for `init` only."""
        positions = jnp.arange(tokens.shape[-1])[None, None]
        hidden, _ = self(tokens, positions)
        if self.config.mtp:
            hidden, _ = self.next_token(hidden, tokens, positions)
        return self.logits(hidden)


def _context(
    c: ModelConfig,
    positions: Int[Array, "P Q T"],
    mask: Bool[Array, "P T"] | None,
    prefix_mask: Bool[Array, "P S"] | None,
    cache: Cache | tuple[Cache, ...] | None,
    index: Int[Array, ""] | Int[Array, "P G"] | None,
    valid: Bool[Array, "P G T"] | None,
) -> Context:
    """What every layer is given: which tokens see which, and their positions."""
    size = length = positions.shape[-1]
    entries = jnp.arange(length)
    if cache is not None:
        size = jax.tree.leaves(cache)[0].shape[-1]
        index = jnp.asarray(index)
        entries = index[..., None] + entries  # [T], or [P, G, T]
    distance = entries[..., None] - jnp.arange(size)
    distance = distance[None, None, None] if distance.ndim == 2 else distance[:, None]
    own = distance >= 0
    if mask is not None:
        # A padded query sees only itself, so that its softmax is defined.
        own = own & (mask[:, None, None, None] | jnp.eye(length, dtype=bool))
    prefix_positions = None if prefix_mask is None else jnp.cumsum(prefix_mask, -1) - 1
    angles = rotations(c, positions)
    return Context(positions, angles, own, distance, prefix_mask, prefix_positions, index, valid)


def as_prefix(cache: Cache) -> Prefix:
    """A layer's Cache of a prefill (G = 1) as the Prefix of a group."""
    return Prefix(*(None if x is None else jnp.squeeze(x, -3) for x in (cache.k, cache.v)))


def layer_cache(c: ModelConfig, prompts: int, group: int, length: int, lead: tuple = ()) -> Cache:
    """An empty Cache of one layer, or of `lead` layers stacked."""
    zeros = lambda *shape: jnp.zeros((*lead, prompts, *shape), c.dtype)  # noqa: E731
    if c.latent.kv_rank:
        width = c.latent.kv_rank + c.latent.rope_dim
        return Cache(zeros(1, group, width, length), None)
    K, D = c.kv_heads, c.head_dim
    return Cache(zeros(K, group, D, length), zeros(K, group, length, D))


def init_cache(c: ModelConfig, prompts: int, group: int, length: int) -> tuple[Cache, ...]:
    """Empty Caches for `length` own tokens of every completion."""
    if c.scan_layers:
        leads: Any = [(s.stop - s.start,) for s in c.segments()]
    else:
        leads = [()] * c.layers
    return tuple(layer_cache(c, prompts, group, length, lead) for lead in leads)


class Prefilled(NamedTuple):
    """Prompts forwarded: hidden states, every layer's Prefix, and the prompts' lengths."""

    hidden: Float[Array, "P 1 S C"]
    prefix: tuple[Prefix, ...]
    lengths: Int[Array, " P"]


def prefill(model: Decoder, params: Params, prompts: Prompts) -> Prefilled:
    """Forward every prompt once."""
    positions = jnp.maximum(jnp.cumsum(prompts.mask, -1) - 1, 0)
    hidden, kv = model.apply(
        {"params": params}, prompts.tokens[:, None], positions[:, None], mask=prompts.mask
    )
    return Prefilled(hidden, tuple(map(as_prefix, kv)), prompts.mask.sum(-1))
