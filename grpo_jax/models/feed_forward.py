"""The gated feed-forward layer."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
from jaxtyping import Array, Float

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.linear import Linear


def activation(c: ModelConfig) -> Callable[[Array], Array]:
    """The config's activation: silu, or gelu in its tanh form."""
    return nn.silu if c.activation == "silu" else partial(nn.gelu, approximate=True)


class FeedForward(nn.Module):
    """SwiGLU, or GeGLU (2002.05202): down(act(gate x) * up x)."""

    config: ModelConfig
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "N C"]) -> Float[Array, "N C"]:
        """What the layer makes of x."""
        c = self.config
        gate = Linear(c, c.hidden, self.width, ("mlp", "embed"), name="gate")(x)
        up = Linear(c, c.hidden, self.width, ("mlp", "embed"), name="up")(x)
        down = Linear(c, self.width, c.hidden, ("embed", "mlp"), name="down")
        return down(activation(c)(gate) * up)
