"""How tokens are drawn from logits: temperature, top-k, top-p and min-p."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 switch their filter off. A completion
    stops at any of `stop` or after max_tokens.
    """

    max_tokens: int
    stop: tuple[int, ...]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self):
        ids = isinstance(self.stop, tuple) and all(isinstance(i, int) for i in self.stop)
        checks = (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("stop", ids and min(self.stop, default=0) >= 0, "a tuple of token ids"),
            ("temperature", self.temperature >= 0, "0 (greedy) or above"),
            ("top_k", self.top_k >= 0, "0 (off) or above"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", 0 <= self.min_p < 1, "in [0, 1)"),
        )
        for name, valid, wanted in checks:
            if not valid:
                raise ValueError(f"rollout.{name}={getattr(self, name)!r} must be {wanted}")


def filter_logits(logits: jax.Array, top_k: int, top_p: float, min_p: float) -> jax.Array:
    """Logits [..., V] at the sampling temperature -> the same, -inf on tokens not to be drawn.

    top_k    the k most likely (ties with the k-th are kept)
    top_p    the fewest most likely tokens whose probabilities reach p (nucleus, 1904.09751; ties
             with the last are kept)
    min_p    tokens of at least p times the likeliest one's probability (2407.01082)

    Filters apply in this order, each to the tokens that the one before kept.
    """
    if top_k and top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if top_p < 1.0:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        p = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(p, axis=-1) - p  # probability of all likelier tokens
        lowest = jnp.where(before < top_p, ordered, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    if min_p > 0.0:
        lowest = logits.max(-1, keepdims=True) + jnp.log(min_p)
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    return logits


class TokenLogps(NamedTuple):
    """Of tokens, in nats: their log-probs, and the entropy of what they were drawn from."""

    logp: jax.Array
    entropy: jax.Array


class Drawn(NamedTuple):
    """Tokens i32[...], with their log-probs and entropies f32[...] in nats."""

    tokens: jax.Array
    logp: jax.Array
    entropy: jax.Array


def draw(logits: jax.Array, sampling: Sampling, keys: jax.Array) -> Drawn:
    """Draw one token per row: tokens i32[...], their log-probs and the entropy f32[...] in nats.

    logits f32[..., V], keys [...]. Log-prob and entropy are of softmax(logits / temperature) before
    any filter, which is the policy that the learner differentiates; at temperature 0, of the
    policy at temperature 1.
    """
    tokens = pick(logits, sampling, keys)
    found = token_logps(logits, tokens, sampling)
    return Drawn(tokens, found.logp, found.entropy)


def pick(logits: jax.Array, sampling: Sampling, keys: jax.Array) -> jax.Array:
    """Draw one token per row, i32[...], of logits f32[..., V], each with its own of keys [...]."""
    if sampling.temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    categorical = jax.random.categorical
    for _ in keys.shape:
        categorical = jax.vmap(categorical)
    return categorical(keys, drawable(logits, sampling)).astype(jnp.int32)


def drawable(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits [..., V] of the distribution that tokens are drawn from; temperature above 0."""
    logits = logits / sampling.temperature
    return filter_logits(logits, sampling.top_k, sampling.top_p, sampling.min_p)


def token_logps(logits: jax.Array, tokens: jax.Array, sampling: Sampling) -> TokenLogps:
    """Log-probs of `tokens` [...] and entropy f32[...], in nats, as `draw` returns them."""
    logp_all = jax.nn.log_softmax(logits / (sampling.temperature or 1.0))
    logp = jnp.take_along_axis(logp_all, tokens[..., None], axis=-1)[..., 0]
    return TokenLogps(logp, -(jnp.exp(logp_all) * logp_all).sum(-1))
