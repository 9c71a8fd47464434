"""The hidden states that predict every token of a group, the prompt forwarded once.

Letters: P prompts, G group, S prompt length, T completion length, C hidden width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.models.attention import Prefix
from grpo_jax.models.decoder import Decoder, as_prefix, prefill
from grpo_jax.models.experts import ROUTING
from grpo_jax.types import Params, Prompts


class Routing(struct.PyTreeNode):
    """What the experts of a forward pass did.

    load     the parameters' tree of router biases, with f32[E] (or [layers, E]) valid tokens each
    balance  the sequence-wise balance loss, summed over sequences and layers
    """

    load: Params
    balance: Float[Array, ""]


class Forwarded(NamedTuple):
    """hidden predicts each completion token; prompt holds the prompt's states."""

    hidden: Float[Array, "P G T C"]
    prompt: Float[Array, "P 1 S C"]
    routing: Routing | None


def forward_group(
    model: Decoder,
    params: Params,
    prompts: Prompts,
    tokens: Int[Array, "P G T"],
    mask: Bool[Array, "P G T"] | None = None,
) -> Forwarded:
    """Forward the prompt once and every completion; gradients flow through the prompt.

    tokens  right-padded
    mask    the tokens whose Routing is reported (None without a mask, or of a model without
            experts)
    """
    P, G, T = tokens.shape
    prompt, prefix, lengths = prefill(model, params, prompts)
    positions = lengths[:, None, None] + jnp.arange(T)
    options = {"prefix": prefix, "prefix_mask": prompts.mask}
    (hidden, _), routing = _reported(model, params, None, mask, tokens, positions, **options)
    first = jnp.broadcast_to(prompt[:, :, -1:], (P, G, 1, prompt.shape[-1]))
    return Forwarded(jnp.concatenate([first, hidden[:, :, :-1]], axis=2), prompt, routing)


def draft_hidden(
    model: Decoder,
    params: Params,
    prompts: Prompts,
    forwarded: Forwarded,
    tokens: Int[Array, "P G T"],
    mask: Bool[Array, "P G T"],
) -> tuple[Float[Array, "P G T C"], Routing | None]:
    """Hidden states of the multi-token prediction layer, and its Routing: state t has
    seen completion token t, and predicts token t + 1."""
    T = tokens.shape[-1]
    prefix, prefix_mask = draft_prefix(model, params, prompts, forwarded.prompt)
    positions = prompts.mask.sum(-1)[:, None, None] - 1 + jnp.arange(T)
    options = {"prefix": prefix, "prefix_mask": prefix_mask}
    (hidden, _), routing = _reported(
        model, params, Decoder.next_token, mask, forwarded.hidden, tokens, positions, **options
    )
    return hidden, routing


def draft_prefix(
    model: Decoder, params: Params, prompts: Prompts, hidden: Float[Array, "P 1 S C"]
) -> tuple[Prefix, Bool[Array, "P S-1"]] | tuple[None, None]:
    """The prompt in the multi-token prediction layer: its Prefix, and mask.

    hidden is the prompt's; entry i holds the state of token i and token i + 1. None
    and None where S is 1.
    """
    if prompts.mask.shape[-1] == 1:
        return None, None
    mask = prompts.mask[:, :-1]
    positions = jnp.maximum(jnp.cumsum(mask, -1) - 1, 0)[:, None]
    out: Any = model.apply(
        {"params": params},
        hidden[:, :, :-1],
        prompts.tokens[:, None, 1:],
        positions,
        mask=mask,
        method=Decoder.next_token,
    )
    return as_prefix(out[1]), mask


def _reported(
    model: Decoder,
    params: Params,
    method: Callable | None,
    mask: Bool[Array, "P G T"] | None,
    *args: Array,
    **options: Any,
) -> tuple[Any, Routing | None]:
    """model.apply, and the Routing of the tokens in `mask`."""
    variables = {"params": params}
    if mask is None or not model.config.experts.count:
        return model.apply(variables, *args, method=method, **options), None
    out, reports = model.apply(
        variables, *args, method=method, valid=mask, mutable=[ROUTING], **options
    )
    return out, Routing(*_gathered(reports[ROUTING]))


def _gathered(reports: Params) -> tuple[Params, Float[Array, ""]]:
    """The reports as a tree of loads, named as the biases are, and the summed balance loss."""
    if "load" in reports:
        return {"router_bias": reports["load"][0]}, reports["balance"][0].sum()
    parts = {name: _gathered(report) for name, report in reports.items()}
    loads = {name: load for name, (load, _) in parts.items()}
    return loads, sum((balance for _, balance in parts.values()), jnp.zeros(()))
