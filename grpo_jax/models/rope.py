"""Rotary position embeddings (RoFormer, 2104.09864) and how they are stretched to long texts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from grpo_jax.models.config import ModelConfig, RopeScaling


def frequencies(c: ModelConfig, local: bool) -> tuple[np.ndarray, float]:
    """The angle per position of each pair, f32[D/2], and the factor of cos and sin.

    local  whether the layer has a window, and the config a base for such layers
    """
    width = c.latent.rope_dim or c.head_dim
    if local and c.rope_local_theta:
        return _plain(c.rope_local_theta, width).astype(np.float32), 1.0
    plain = _plain(c.rope_theta, width)
    s = c.rope_scaling
    stretched, factor = {
        "none": lambda: (plain, 1.0),
        "linear": lambda: (plain / s.factor, 1.0),
        "llama3": lambda: (_llama3(plain, s), 1.0),
        "yarn": lambda: (_yarn(plain, s, c.rope_theta), _yarn_factor(s)),
    }[s.kind]()
    return stretched.astype(np.float32), factor


def _plain(theta: float, width: int) -> np.ndarray:
    return theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)


def _llama3(plain: np.ndarray, s: RopeScaling) -> np.ndarray:
    """Llama 3.1: slow pairs by the factor, fast ones not at all, a ramp between."""
    rotations = s.original_length * plain / (2 * math.pi)
    smooth = (rotations - s.low_frequency) / (s.high_frequency - s.low_frequency)
    smooth = np.clip(smooth, 0.0, 1.0)
    return (1 - smooth) * plain / s.factor + smooth * plain


def _yarn(plain: np.ndarray, s: RopeScaling, theta: float) -> np.ndarray:
    """YaRN (2309.00071), eq. 23: a ramp over pairs, from beta_fast's to beta_slow's."""
    half = len(plain)

    def pair(rotations: float) -> float:  # which pair rotates so often over the original length
        return half * math.log(s.original_length / (rotations * 2 * math.pi)) / math.log(theta)

    low = max(math.floor(pair(s.beta_fast)), 0)
    high = min(math.ceil(pair(s.beta_slow)), 2 * half - 1)
    ramp = np.clip((np.arange(half) - low) / max(high - low, 1e-3), 0.0, 1.0)
    return ramp * plain / s.factor + (1 - ramp) * plain


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_factor(s: RopeScaling) -> float:
    if s.attention_factor:
        return s.attention_factor
    if s.mscale and s.mscale_all_dim:
        return _mscale(s.factor, s.mscale) / _mscale(s.factor, s.mscale_all_dim)
    return _mscale(s.factor, 1.0)


def query_scale(c: ModelConfig) -> float:
    """The factor of queries, DeepSeek's YaRN temperature included."""
    width = c.latent.nope_dim + c.latent.rope_dim if c.latent.kv_rank else c.head_dim
    scale = c.query_scale or width**-0.5
    s = c.rope_scaling
    if c.latent.kv_rank and s.kind != "none" and s.mscale_all_dim:
        scale *= _mscale(s.factor, s.mscale_all_dim) ** 2
    return scale


def rotations(
    c: ModelConfig, positions: Int[Array, "..."]
) -> tuple[Float[Array, "kinds ... half"], Float[Array, "kinds ... half"]]:
    """cos and sin of positions times the frequencies; half is D/2.

    kinds: every layer's, and then that of layers with a window, where the config has a base for
    them. Once for all layers: XLA would compute the cosines anew for every head of each.
    """
    kinds = [frequencies(c, local) for local in (False, True)[: 1 + (c.rope_local_theta > 0)]]
    angle = jnp.stack([positions[..., None].astype(jnp.float32) * f for f, _ in kinds])
    factor = jnp.array([f for _, f in kinds]).reshape(-1, *[1] * (angle.ndim - 1))
    return jax.lax.optimization_barrier((jnp.cos(angle) * factor, jnp.sin(angle) * factor))


def rotate(
    x: Float[Array, "P G T N D"],
    rotation: tuple[Float[Array, "P Q T half"], Float[Array, "P Q T half"]],
    interleaved: bool = False,
) -> Float[Array, "P G T N D"]:
    """Rotate each pair of x by the angle with this cos and sin; half is D/2, Q is G or 1.

    A pair is (i, i + D/2), or neighbours where `interleaved`, which come out as halves.
    """
    cos, sin = (part[..., None, :].astype(x.dtype) for part in rotation)
    half = x.shape[-1] // 2
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
