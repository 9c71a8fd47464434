"""Products against NumPy float64, in value and gradient, and what they are multiplied in."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.config import Experts, ModelConfig
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.logps import completion_logps
from grpo_jax.models.products import FEW_ROWS, matmul, project
from grpo_jax.types import Prompts

SHAPES = {"rows": (FEW_ROWS + 1, 6), "few rows": (5, 6), "one row": (1, 6), "groups": (2, 3, 7, 6)}
TOLERANCE = {"float32": 1e-6, "bfloat16": 2.0**-8}  # of the sum of what each entry adds up


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def close(got, want, size, dtype):
    error = np.abs(np.asarray(got, np.float64) - want)
    assert (error <= TOLERANCE[dtype] * 2 * size).all(), (error / size).max()


def rounded(array, dtype):
    return np.asarray(jnp.asarray(array, dtype), np.float64)


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_project_is_x_times_the_transposed_kernel(shape, dtype, kept):
    x, kernel, slope = draw(0, *shape), draw(1, 4, 6), draw(2, *shape[:-1], 4)
    xs, kernels = jnp.asarray(x, dtype), jnp.asarray(kernel, kept)
    out, vjp = jax.vjp(jax.jit(project), xs, kernels)
    dx, dk = vjp(jnp.asarray(slope, jnp.float32))
    assert (out.dtype, dx.dtype, dk.dtype) == (jnp.float32, dtype, kept)
    x, kernel, slope = (rounded(a, dtype) for a in (x, rounded(kernel, kept), slope))
    rows, slopes = x.reshape(-1, 6), slope.reshape(-1, 4)
    close(out, x @ kernel.T, abs(x) @ abs(kernel).T, dtype)
    close(dx, slope @ kernel, abs(slope) @ abs(kernel), dtype)
    coarser = "bfloat16" if "bfloat16" in (dtype, kept) else "float32"
    close(dk, slopes.T @ rows, abs(slopes).T @ abs(rows), coarser)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matmul_multiplies_batches(dtype):
    a, b, slope = draw(0, 2, 3, 5, 4), draw(1, 2, 3, 4, 6), draw(2, 2, 3, 5, 6)
    out, vjp = jax.vjp(jax.jit(matmul), jnp.asarray(a, dtype), jnp.asarray(b, dtype))
    da, db = vjp(jnp.asarray(slope, jnp.float32))
    assert (out.dtype, da.dtype, db.dtype) == (jnp.float32, dtype, dtype)
    a, b, slope = (rounded(x, dtype) for x in (a, b, slope))
    turn = lambda x: x.swapaxes(-1, -2)  # noqa: E731
    close(out, a @ b, abs(a) @ abs(b), dtype)
    close(da, slope @ turn(b), abs(slope) @ abs(turn(b)), dtype)
    close(db, turn(a) @ slope, abs(turn(a)) @ abs(slope), dtype)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "experts"])
def test_a_bfloat16_model_multiplies_in_bfloat16_backward_too(sparse):
    """All but the router, whose products are fp32 by design."""
    experts = Experts(count=7, active=2, ff=8) if sparse else Experts()
    c = ModelConfig(
        vocab_size=11, hidden=8, layers=2, heads=2, ff=16, dtype="bfloat16", experts=experts
    )
    model, tokens = Decoder(c), jnp.ones((2, 3, 4), jnp.int32)
    prompts = Prompts(tokens=jnp.ones((2, 5), jnp.int32), mask=jnp.ones((2, 5), bool))
    params = model.init(jax.random.key(0), tokens, method=Decoder.initialise)["params"]
    loss = lambda params: completion_logps(model, params, prompts, tokens)[0].sum()  # noqa: E731
    products = list(dots(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
    assert len(products) > 40
    slow = {shapes for shapes, dtypes in products if dtypes != ("bfloat16", "bfloat16")}
    assert all(any(7 in shape for shape in shapes) for shapes in slow), slow
    assert bool(slow) == sparse


def dots(jaxpr):
    """Shapes and dtypes of what the products of a jaxpr multiply, in order."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "ragged_dot_general"):
            values = [v.aval for v in equation.invars[:2]]
            yield tuple(v.shape for v in values), tuple(str(v.dtype) for v in values)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from dots(inner)
