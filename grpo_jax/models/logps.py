"""Log-probs of tokens without ever holding [P, G, T, V] logits whole."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpo_jax.models.decoder import Decoder
from grpo_jax.models.forward import forward_group
from grpo_jax.types import Params, Prompts

CHUNK_ELEMENTS = 2**22  # logits held at once, per device of the batch axis: 16 MiB in fp32


def log_softmax_stats(
    logits: Float[Array, "... V"], tokens: Int[Array, "..."], temperature: float
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Log-prob of `tokens` and entropy, both in nats, of softmax(logits / temperature)."""
    logits = logits / temperature
    shifted = logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weight = jnp.exp(shifted)
    total = weight.sum(-1)
    log_total = jnp.log(total)
    chosen = jnp.take_along_axis(shifted, tokens[..., None], axis=-1)[..., 0]
    entropy = log_total - (weight * shifted).sum(-1) / total
    return chosen - log_total, entropy


def chunk_length(prompts: int, group: int, length: int, vocab: int) -> int:
    """How many of `length` positions are held at once: CHUNK_ELEMENTS' worth, at most half."""
    chunks = max(2, -(-prompts * group * length * vocab // CHUNK_ELEMENTS))
    return -(-length // chunks)


def token_logps(
    model: Decoder,
    params: Params,
    hidden: Float[Array, "P G T C"],
    tokens: Int[Array, "P G T"],
    temperature: float = 1.0,
) -> tuple[Float[Array, "P G T"], Float[Array, "P G T"]]:
    """Log-prob and entropy of each token, in nats, in chunks along T.

    The backward pass recomputes each chunk's logits. The chunks run along T, so that P may be
    sharded.
    """
    P, G, T = tokens.shape
    n = chunk_length(P, G, T, model.config.vocab_size)
    chunks = -(-T // n)

    @jax.checkpoint
    def chunk(params, hidden, tokens):
        logits: Any = model.apply({"params": params}, hidden, method=Decoder.logits)
        return log_softmax_stats(logits, tokens, temperature)

    def split(x):  # [P, G, T, ...] -> [chunks, P, G, n, ...], the last chunk padded
        x = jnp.pad(x, [(0, 0), (0, 0), (0, chunks * n - T)] + [(0, 0)] * (x.ndim - 3))
        return jnp.moveaxis(x.reshape(P, G, chunks, n, *x.shape[3:]), 2, 0)

    join = lambda x: jnp.moveaxis(x, 0, 2).reshape(P, G, chunks * n)[:, :, :T]  # noqa: E731
    _, (logp, entropy) = jax.lax.scan(
        lambda _, xs: (None, chunk(params, *xs)), None, (split(hidden), split(tokens))
    )
    return join(logp), join(entropy)


def completion_logps(
    model: Decoder,
    params: Params,
    prompts: Prompts,
    tokens: Int[Array, "P G T"],
    temperature: float = 1.0,
) -> tuple[Float[Array, "P G T"], Float[Array, "P G T"]]:
    """Log-prob and entropy, in nats, of completions at the sampling temperature.

    Completions are right-padded; values at padding are finite and meaningless.
    """
    hidden = forward_group(model, params, prompts, tokens).hidden
    return token_logps(model, params, hidden, tokens, temperature)
