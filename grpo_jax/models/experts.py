"""A mixture of experts (DeepSeekMoE, 2401.06066): tokens sorted by expert, one ragged product.

N tokens, E experts, A active experts a token, C hidden width, F an expert's width.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.models.config import Experts, ModelConfig
from grpo_jax.models.feed_forward import FeedForward, activation

ROUTING = "routing"  # the collection that layers report their load to


class Routes(NamedTuple):
    """The experts that serve each token, and their weights; scores are those of all experts."""

    weights: Float[Array, "N A"]
    ids: Int[Array, "N A"]
    scores: Float[Array, "N E"]


def route(
    e: Experts, logits: Float[Array, "N E"], bias: Float[Array, " E"] | None = None
) -> Routes:
    """The Routes of tokens; bias shifts the choice but not the weights (2412.19437, eq. 16)."""
    scores = jax.nn.sigmoid(logits) if e.score == "sigmoid" else jax.nn.softmax(logits)
    choice = scores if bias is None else scores + bias
    choice = jax.lax.stop_gradient(choice)
    if e.groups > 1:
        grouped = choice.reshape(*choice.shape[:-1], e.groups, -1)
        best = jax.lax.top_k(grouped, 2 if e.group_score == "top2" else 1)[0].sum(-1)
        chosen = jax.lax.top_k(best, e.top_groups)[1]
        kept = (chosen[..., None] == jnp.arange(e.groups)).any(-2)
        choice = jnp.where(kept[..., None], grouped, -jnp.inf).reshape(choice.shape)
    ids = jax.lax.top_k(choice, e.active)[1]
    weights = jnp.take_along_axis(scores, ids, -1)
    if e.normalise:
        weights /= weights.sum(-1, keepdims=True) + 1e-20
    return Routes(weights * e.scale, ids, scores)


def balance_loss(
    e: Experts,
    ids: Int[Array, "P G T A"],
    scores: Float[Array, "P G T E"],
    valid: Bool[Array, "P G T"],
) -> Float[Array, "P G"]:
    """The sequence-wise balance loss without alpha (2412.19437, eq. 17 to 20).

    A sequence without a valid token has none.
    """
    n = jnp.maximum(valid.sum(-1), 1)[..., None]
    hits = (ids[..., None] == jnp.arange(e.count)).any(-2) & valid[..., None]
    f = hits.sum(-2) * e.count / (e.active * n)
    share = scores / (scores.sum(-1, keepdims=True) + 1e-20) * valid[..., None]
    return (f * share.sum(-2) / n).sum(-1)


def expert_outputs(
    x: Float[Array, "N C"],
    weights: Float[Array, "N A"],
    ids: Int[Array, "N A"],
    gate: Float[Array, "E C F"],
    up: Float[Array, "E C F"],
    down: Float[Array, "E F C"],
    act: Callable[[Array], Array],
) -> Float[Array, "N C"]:
    """Sum over a token's experts of weight * down(act(gate x) * up x).

    Rows are sorted by expert, and the product is ragged: each row meets its own expert only. (XLA
    for CPUs has no such product, and computes every expert on every row.)
    """
    N, A = ids.shape
    order = jnp.argsort(ids.reshape(-1), stable=True)
    sizes = jnp.bincount(ids.reshape(-1), length=gate.shape[0]).astype(jnp.int32)

    product = partial(jax.lax.ragged_dot, group_sizes=sizes)
    rows = x[order // A]
    out = product(act(product(rows, gate)) * product(rows, up), down)
    back = jnp.zeros_like(order).at[order].set(jnp.arange(N * A))  # the inverse permutation
    out = out[back].reshape(N, A, -1)
    return (out * weights[..., None].astype(out.dtype)).sum(1)


class MixtureOfExperts(nn.Module):
    """Routed experts, and the shared one that serves every token."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "N C"], valid: Bool[Array, "P G T"] | None
    ) -> Float[Array, "N C"]:
        """What the experts make of x, N = P G T; valid None means all.

        Reports to the collection ROUTING, if asked: load f32[E], how many valid tokens each
        expert served, and balance f32[], the balance loss summed over sequences.
        """
        c, e = self.config, self.config.experts
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        router: Any = self.param(
            "router",
            nn.with_logical_partitioning(init, (None, "embed")),
            (e.count, c.hidden),
            c.param_dtype,
        )
        bias: Any = None
        if e.bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
            bias = self.param("router_bias", zeros, (e.count,), jnp.float32)
            bias = jax.lax.stop_gradient(bias)
        logits = jnp.matmul(x.astype(jnp.float32), router.astype(jnp.float32).T)
        weights, ids, scores = route(e, logits, bias)
        if valid is not None and self.is_mutable_collection(ROUTING):
            self._report(ids, scores, valid)
        kernel = lambda name, a, b, axes: jnp.asarray(  # noqa: E731
            self.param(
                name,
                nn.with_logical_partitioning(
                    nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0),
                    ("experts", *axes),
                ),
                (e.count, a, b),
                c.param_dtype,
            ),
            c.dtype,
        )
        gate = kernel("gate", c.hidden, e.ff, ("embed", "mlp"))
        up = kernel("up", c.hidden, e.ff, ("embed", "mlp"))
        down = kernel("down", e.ff, c.hidden, ("mlp", "embed"))
        out = expert_outputs(x, weights, ids, gate, up, down, activation(c))
        if e.shared:
            out += FeedForward(c, e.shared, name="shared")(x)
        return out

    def _report(
        self, ids: Int[Array, "N A"], scores: Float[Array, "N E"], valid: Bool[Array, "P G T"]
    ) -> None:
        e = self.config.experts
        split = lambda a: a.reshape(*valid.shape, -1)  # noqa: E731
        ids, scores = split(ids), split(scores)
        hits = (ids[..., None] == jnp.arange(e.count)).any(-2) & valid[..., None]
        self.sow(ROUTING, "load", hits.sum((0, 1, 2)).astype(jnp.float32))
        self.sow(ROUTING, "balance", balance_loss(e, ids, scores, valid).sum())
