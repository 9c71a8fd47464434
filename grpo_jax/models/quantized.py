"""A frozen base in few bits under adapters (QLoRA, 2305.14314), by qwix (the extra `quantized`)."""

from functools import partial
from typing import Any, Protocol, cast

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array

from grpo_jax.types import Params

TILE = 64  # columns that share a scale in 4 bits


class Quantized(Protocol):
    """qwix's QArray."""

    qvalue: Array
    scale: Array


def is_quantized(leaf: object) -> bool:
    """Whether a parameter is qwix's QArray."""
    return hasattr(leaf, "qvalue")


def dense(leaf: Array | Quantized) -> Array:
    """A parameter as an array, multiplied out where it is quantized."""
    return _qwix().dequantize(leaf) if is_quantized(leaf) else cast(Array, leaf)


def quantize_kernels(params: Params, kind: str) -> Params:
    """The parameters with the kernels of linear layers as QArrays; nested dicts both.

    kind  int8: a scale for each row; int4, nf4: one for each TILE columns of it
    """
    flat = flax.traverse_util.flatten_dict(params)
    done = {path: quantize_leaf(path, leaf, kind) for path, leaf in flat.items()}
    return flax.traverse_util.unflatten_dict(done)


def quantize_leaf(path: tuple[str, ...], leaf: Array, kind: str) -> Array | Quantized:
    """The parameter at `path`, quantized if it is the kernel [.., out, in] of a linear layer."""
    return _quantize(leaf, kind) if path[-1] == "kernel" else leaf


@partial(jax.jit, static_argnames="kind")
def _quantize(kernel: Array, kind: str) -> Quantized:
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
