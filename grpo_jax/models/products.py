"""Matrix products that sum in fp32 what they multiply in the model's dtype, forward and backward.

JAX's own gradient of a product with fp32 sums multiplies in fp32 throughout: in bf16 it is several
times as slow, on a GPU most of all.
"""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

# Up to this many rows (decoding), XLA for CPUs multiplies kernel @ x.T faster than its transpose.
FEW_ROWS = 64


@jax.custom_vjp
def project(
    x: Float[Array, "... inputs"], kernel: Float[Array, "outputs inputs"]
) -> Float[Array, "... outputs"]:
    """x times the kernel, transposed, in fp32.

    Multiplied in x's dtype, whatever the kernel is kept in, and the kernel's gradient is of the
    latter.
    """
    kernel = kernel.astype(x.dtype)
    if x.ndim == 2 and x.shape[0] <= FEW_ROWS:
        out = _product(kernel, x.T)
        return jax.lax.optimization_barrier(out).T  # without it, XLA turns the product around again
    return jax.lax.dot_general(
        x, kernel, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )


def _project_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return project(x, kernel), (x, kernel)


def _project_backward(saved: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    x, kernel = saved
    slope = slope.astype(x.dtype)
    dx = _product(slope, kernel.astype(x.dtype)).astype(x.dtype)
    turned = jax.lax.platform_dependent(_rows(slope), cpu=_turn, default=jnp.transpose)
    return dx, _product(turned, _rows(x)).astype(kernel.dtype)


project.defvjp(_project_forward, _project_backward)


@jax.custom_vjp
def matmul(a: Float[Array, "... M N"], b: Float[Array, "... N W"]) -> Float[Array, "... M W"]:
    """a times b, of one dtype, in fp32."""
    return _product(a, b)


def _matmul_forward(a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return matmul(a, b), (a, b)


def _matmul_backward(saved: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    a, b = saved
    slope = slope.astype(a.dtype)
    da, db = _product(slope, b.swapaxes(-1, -2)), _product(a.swapaxes(-1, -2), slope)
    return da.astype(a.dtype), db.astype(b.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _rows(x: Float[Array, "... W"]) -> Float[Array, "N W"]:
    return x.reshape(-1, x.shape[-1])


def _turn(x: Float[Array, "N W"]) -> Float[Array, "W N"]:
    # Copied first: XLA for CPUs multiplies a transposed left side at half the speed (bf16).
    turned = with_layout_constraint(x.T, Layout(major_to_minor=(0, 1)))
    return jax.lax.optimization_barrier(turned)
