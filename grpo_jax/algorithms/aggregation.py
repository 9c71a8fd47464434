"""From per-token losses to one scalar, by weights that know the whole minibatch.

The loss is sum(weights * per_token_loss). The denominators are counted once, on the whole
minibatch's mask; a micro-batch or a device takes its slice of the weights, and the slices'
gradients add up to the gradient of the whole. Completions without a single valid token count in no
denominator.
"""

from collections.abc import Callable

import chex
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def sequence_mean(mask: Bool[Array, "P G T"], max_length: int) -> Float[Array, "P G T"]:
    """mask / (len_i N): the mean over completions of their token means (GRPO, 2402.03300)."""
    length = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    return mask / (length * _completions(mask))


def token_mean(mask: Bool[Array, "P G T"], max_length: int) -> Float[Array, "P G T"]:
    """mask / total: the mean over all valid tokens (DAPO, 2503.14476)."""
    return mask / jnp.maximum(mask.sum(), 1).astype(jnp.float32)


def constant(mask: Bool[Array, "P G T"], max_length: int) -> Float[Array, "P G T"]:
    """mask / (N T_max): no completion's own length enters (Dr. GRPO, 2503.20783)."""
    return mask / (_completions(mask) * max_length)


def sequence_sum(mask: Bool[Array, "P G T"], max_length: int) -> Float[Array, "P G T"]:
    """mask / N: the mean over completions of their token sums (RLOO, 2402.14740)."""
    return mask / _completions(mask)


AGGREGATIONS: dict[str, Callable[[Bool[Array, "P G T"], int], Float[Array, "P G T"]]] = {
    f.__name__: f for f in (sequence_mean, token_mean, constant, sequence_sum)
}


def token_weights(
    mask: Bool[Array, "P G T"], name: str, max_length: int | None = None
) -> Float[Array, "P G T"]:
    """Each token's weight in the loss, from the WHOLE minibatch's mask.

    `name` is a key of AGGREGATIONS; `max_length` is T_max of 'constant' (default: T).
    """
    chex.assert_rank(mask, 3)
    if name not in AGGREGATIONS:
        raise ValueError(f"aggregation must be one of {sorted(AGGREGATIONS)}, got {name!r}")
    return AGGREGATIONS[name](mask, max_length or mask.shape[-1]).astype(jnp.float32)


def token_share(mask: Bool[Array, "P G T"]) -> Float[Array, "P G T"]:
    """Each token's weight in the mean over the WHOLE minibatch's tokens, as metrics have it."""
    return token_mean(mask, mask.shape[-1])


def drop_truncated(
    mask: Bool[Array, "P G T"], finished: Bool[Array, "P G"]
) -> Bool[Array, "P G T"]:
    """Masks completions that hit the length limit.

    What DAPO calls overlong filtering (2503.14476).
    """
    chex.assert_shape(finished, mask.shape[:2])
    return mask & finished[..., None]


def _completions(mask: Bool[Array, "P G T"]) -> Float[Array, ""]:
    """N, the number of completions with any valid token; 1 where there is none."""
    return jnp.maximum(mask.any(-1).sum(), 1).astype(jnp.float32)
