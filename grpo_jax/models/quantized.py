"""A frozen base in few bits under adapters (QLoRA, 2305.14314), by qwix (the extra `quantized`)."""

from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp

TILE = 64  # columns that share a scale in 4 bits


def is_quantized(leaf: Any) -> bool:
    """Whether a parameter is qwix's QArray."""
    return hasattr(leaf, "qvalue")


def dense(leaf: Any) -> jax.Array:
    """A parameter as an array, multiplied out where it is quantized."""
    return _qwix().dequantize(leaf) if is_quantized(leaf) else leaf


def quantize_kernels(params: Any, kind: str) -> Any:
    """The parameters with the kernels of linear layers as QArrays; nested dicts both.

    kind  int8: a scale for each row; int4, nf4: one for each TILE columns of it
    """
    flat = flax.traverse_util.flatten_dict(params)
    done = {path: quantize_leaf(path, leaf, kind) for path, leaf in flat.items()}
    return flax.traverse_util.unflatten_dict(done)


def quantize_leaf(path: tuple[str, ...], leaf: Any, kind: str) -> Any:
    """The parameter at `path`, quantized if it is the kernel [.., out, in] of a linear layer."""
    return _quantize(leaf, kind) if path[-1] == "kernel" else leaf


@partial(jax.jit, static_argnames="kind")
def _quantize(kernel: jax.Array, kind: str) -> Any:
    rows = tuple(range(kernel.ndim - 1))
    tiled = kind != "int8" and kernel.shape[-1] % TILE == 0
    return _qwix().quantize(
        kernel,
        "nf4" if kind == "nf4" else getattr(jnp, kind),
        channelwise_axes=rows,
        tiled_axes={kernel.ndim - 1: TILE} if tiled else {},
        scale_dtype=jnp.float32,
    )


def _qwix() -> Any:
    try:
        import qwix
    except ImportError as error:
        raise ValueError(
            f"model.lora.base needs qwix: pip install 'grpo_jax[quantized]' ({error})"
        ) from error
    return qwix
