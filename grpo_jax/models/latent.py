"""Multi-head latent attention (DeepSeek-V2, 2405.04434): a cache of only latents.

Letters as in `attention`; H heads, L width of the latent, Y of the shared rotary key, N of the
part of a head without positions, E of a head's values.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.models.attention import Cache, Context, Local, Prefix, attend, extend, visible
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.linear import Linear, RMSNorm
from grpo_jax.models.rope import query_scale, rotate


class LatentAttention(nn.Module):
    """Keys and values are projections of one latent; the cache and the prefix hold only
    [latent; rotary key], [P, 1, (G,) L + Y, U].

    With a cache (decoding), the up-projections are absorbed into queries and outputs, so that
    attention runs on latents; without one, keys and values are projected up once per token.
    """

    config: ModelConfig

    def setup(self) -> None:
        """Declare the projections."""
        c, a = self.config, self.config.latent
        heads, q_width = c.heads, c.heads * (a.nope_dim + a.rope_dim)
        if a.q_rank:
            self.q_a = Linear(c, c.hidden, a.q_rank, ("latent", "embed"), c.qkv_bias)
            self.q_a_norm = RMSNorm(c)
            self.q_b = Linear(c, a.q_rank, q_width, ("heads", "latent"))
        else:
            self.q = Linear(c, c.hidden, q_width, ("heads", "embed"))
        width = a.kv_rank + a.rope_dim
        self.kv_a = Linear(c, c.hidden, width, ("latent", "embed"), c.qkv_bias)
        self.kv_a_norm = RMSNorm(c)
        self.kv_b = Linear(c, a.kv_rank, heads * (a.nope_dim + a.v_dim), ("heads", "latent"))
        self.o = Linear(c, heads * a.v_dim, c.hidden, ("embed", "heads"), c.out_bias)

    def __call__(
        self,
        x: Float[Array, "N C"],
        prefix: Prefix | None,
        cache: Cache | None,
        local: Local,
        context: Context,
    ) -> tuple[Float[Array, "N C"], Cache]:
        """x, N = P G T in that order -> the same, and latents or the cache with them."""
        c, a = self.config, self.config.latent
        P, T = context.positions.shape[0], context.positions.shape[2]
        G = x.shape[0] // (P * T)
        rotation = context.rotation(local)
        q = self.q_b(self.q_a_norm(self.q_a(x))) if a.q_rank else self.q(x)
        q = q.reshape(P, G, T, c.heads, -1) * query_scale(c)
        q_nope, q_rope = q[..., : a.nope_dim], q[..., a.nope_dim :]
        q_rope = rotate(q_rope, rotation, c.rope_interleaved)
        latent = self.kv_a(x).reshape(P, G, T, 1, -1)
        key = rotate(latent[..., a.kv_rank :], rotation, c.rope_interleaved)
        latent = jnp.concatenate([self.kv_a_norm(latent[..., : a.kv_rank]), key], -1)
        own = kept = Cache(latent.transpose(0, 3, 1, 4, 2), None)
        if cache is not None:
            kept, own = extend(cache, own, context.index, local.place)
        form = self._expanded if cache is None else self._absorbed
        out = form(q_nope, q_rope, own, prefix, visible(context, local.window))
        return self.o(out.reshape(P * G * T, -1)), kept

    def _up(self) -> tuple[Float[Array, "H N L"], Float[Array, "H E L"]]:
        """The up-projections of keys and of values."""
        a = self.config.latent
        weight = self.kv_b.weight().reshape(self.config.heads, -1, a.kv_rank)
        return weight[:, : a.nope_dim], weight[:, a.nope_dim :]

    def _absorbed(
        self,
        q_nope: Float[Array, "P G T H N"],
        q_rope: Float[Array, "P G T H Y"],
        own: Cache,
        prefix: Prefix | None,
        masks: tuple[Bool[Array, "..."], Bool[Array, "..."] | None],
    ) -> Float[Array, "P G T H E"]:
        """Queries meet latents: q_nope (W_k c) = (q_nope W_k) c."""
        up_k, up_v = self._up()
        rank = self.config.latent.kv_rank
        q = jnp.einsum("pgthn,hnl->pgthl", q_nope, up_k)
        q = jnp.concatenate([q, q_rope], -1).transpose(0, 1, 3, 2, 4)[:, None]  # [P, 1, G, H, T]
        values = lambda k: k[..., :rank, :].swapaxes(-1, -2)  # noqa: E731
        own = Cache(own.k, values(own.k))
        if prefix is not None:
            prefix = Prefix(prefix.k, values(prefix.k))
        out = attend(q, own, masks[0], prefix, masks[1])[:, 0]  # [P, G, H, T, L]
        return jnp.einsum("pghtl,hel->pgthe", out, up_v)

    def _expanded(
        self,
        q_nope: Float[Array, "P G T H N"],
        q_rope: Float[Array, "P G T H Y"],
        own: Cache,
        prefix: Prefix | None,
        masks: tuple[Bool[Array, "..."], Bool[Array, "..."] | None],
    ) -> Float[Array, "P G T H E"]:
        """Every head's keys and values, projected up."""
        q = jnp.concatenate([q_nope, q_rope], -1).transpose(0, 3, 1, 2, 4)[:, :, :, None]
        own = Cache(*self._expand(own.k))
        if prefix is not None:
            prefix = Prefix(*(x[:, :, 0] for x in self._expand(prefix.k[:, :, None])))
        out = attend(q, own, masks[0], prefix, masks[1])[:, :, :, 0]  # [P, H, G, T, E]
        return out.transpose(0, 2, 3, 1, 4)

    def _expand(
        self, k: Float[Array, "P 1 G L+Y U"]
    ) -> tuple[Float[Array, "P H G N+Y U"], Float[Array, "P H G U E"]]:
        """Keys and values of latents."""
        rank, H = self.config.latent.kv_rank, self.config.heads
        up_k, up_v = self._up()
        latent, rope = k[:, 0, :, :rank], k[:, :, :, rank:]
        keys = jnp.einsum("pglu,hnl->phgnu", latent, up_k)
        values = jnp.einsum("pglu,hel->phgue", latent, up_v)
        rope = jnp.broadcast_to(rope, (rope.shape[0], H, *rope.shape[2:]))
        return jnp.concatenate([keys, rope], 3), values
