"""The linear layer, its adapters, and the norm; kernels [out, in], as checkpoints keep them."""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.products import project
from grpo_jax.models.quantized import dense


class Linear(nn.Module):
    """A linear layer; `axes` are its kernel's logical axes, (out, in).

    XLA reads such a kernel in order when few rows meet it, so decoding on a CPU is up to 1.4
    times as fast as with the transpose; training is as fast either way. Where the config's
    adapters (LoRA, 2106.09685) target the layer and the parameters hold them, they are added.
    """

    config: ModelConfig
    inputs: int
    width: int
    axes: tuple[str | None, str | None]
    bias: bool = False

    def setup(self) -> None:
        """Declare kernel, bias and adapters."""
        c, lora = self.config, self.config.lora
        init = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        zeros = nn.initializers.zeros
        kept = c.param_dtype
        self.kernel = self._param("kernel", init, (self.width, self.inputs), self.axes, kept)
        if self.bias:
            self.offset = self._param("bias", zeros, (self.width,), self.axes[:1], kept)
        targeted = lora.rank and re.search(lora.targets, "/".join(self.path))
        # Parameters without adapters are the reference policy's, or merged ones.
        self.adapted = bool(targeted) and (
            self.is_initializing() or self.has_variable("params", "lora_a")
        )
        if self.adapted:
            a, b = (lora.rank, self.inputs), (self.width, lora.rank)
            # As PEFT draws them; in fp32, as they learn by small steps.
            uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", -1, -2)
            self.lora_a = self._param("lora_a", uniform, a, (None, self.axes[1]), "float32")
            self.lora_b = self._param("lora_b", zeros, b, (self.axes[0], None), "float32")
        self.scale = c.lora.alpha / c.lora.rank if c.lora.rank else 0.0

    def _param(
        self,
        name: str,
        init: Callable[..., Array],
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        kept: str,
    ) -> Array:
        value: Any = self.param(name, nn.with_logical_partitioning(init, axes), shape, kept)
        return dense(value)

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... width"]:
        """What the layer makes of x."""
        out = project(x, self.kernel)
        if self.adapted:
            low = project(x, self.lora_a).astype(x.dtype)
            out += self.scale * project(low, self.lora_b)
        if self.bias:
            out += self.offset
        return out.astype(self.config.dtype)

    def weight(self) -> Float[Array, "width inputs"]:
        """The kernel with its adapters merged in."""
        if not self.adapted:
            return self.kernel.astype(self.config.dtype)
        delta = jnp.matmul(self.lora_b, self.lora_a, preferred_element_type=jnp.float32)
        return (self.kernel + self.scale * delta).astype(self.config.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * scale (1910.07467), in fp32; * (1 + scale) where the config says so."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """x, normalised."""
        c = self.config
        start = nn.initializers.zeros if c.norm_offset else nn.initializers.ones
        init = nn.with_logical_partitioning(start, ("norm",))
        scale: Any = self.param("scale", init, x.shape[-1:], c.param_dtype)
        scale = scale.astype(jnp.float32)
        x = x.astype(jnp.float32)
        rms = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + c.norm_eps)
        return (x * (rms * (scale + 1.0 if c.norm_offset else scale))).astype(c.dtype)
