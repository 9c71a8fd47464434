import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import jit

from grpo_jax.algorithms import KLS
from grpo_jax.algorithms.kl import importance_weighted
from grpo_jax.algorithms.ratios import token

FORMULAS = {"k1": lambda d: -d, "k2": lambda d: d * d / 2, "k3": lambda d: np.exp(d) - d - 1}


@pytest.mark.parametrize("name", KLS)
def test_formula(batch, name):
    logp, ref, mask = (batch[k] for k in ("logp", "logp_ref", "mask"))
    got = KLS[name](logp, ref, mask)
    want = FORMULAS[name](ref.astype(np.float64) - logp.astype(np.float64))
    np.testing.assert_allclose(got, np.where(mask, want, 0), atol=1e-6)


@pytest.mark.parametrize("name", KLS)
def test_far_from_the_reference_value_and_gradient_are_still_the_formulas(name):
    """d = logp_ref - logp from where exp(d) vanishes up to where it nearly overflows, and 0."""
    d = np.array([-1e4, -50.0, -20.0, -3.0, 0.0, 3.0, 19.0], np.float32)
    one = lambda x: jnp.reshape(x, (1, 1, -1))  # noqa: E731
    total = lambda logp: KLS[name](one(logp), one(d), one(d == d)).sum()  # noqa: E731
    gradient = jit(jax.grad(total))(jnp.zeros_like(d))
    exact = {"k1": np.ones(7), "k2": -d, "k3": 1 - np.exp(d.astype(np.float64))}[name]
    np.testing.assert_allclose(gradient, exact, rtol=1e-6)
    want = FORMULAS[name](d.astype(np.float64))
    np.testing.assert_allclose(KLS[name](one(0 * d), one(d), one(d == d))[0, 0], want, rtol=1e-6)


def test_k3_beyond_overflow_is_finite():
    d = jnp.full((1, 1, 1), 200.0)
    value, gradient = jax.value_and_grad(lambda x: KLS["k3"](x, d, d > 0).sum())(0 * d)
    np.testing.assert_allclose(value, np.exp(20.0) - 21, rtol=1e-6)
    assert gradient == 0


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_is_unbiased(name):
    """The mean over the policy's own tokens is the KL divergence of two categoricals."""
    policy, reference = (
        jax.nn.log_softmax(jnp.array(x)) for x in ([0.1, 1.0, -1.0], [0.5, 0.0, 0])
    )
    ones = jnp.ones((1, 1, 3), bool)
    estimate = KLS[name](policy[None, None], reference[None, None], ones)[0, 0]
    exact = jnp.sum(jnp.exp(policy) * (policy - reference))
    np.testing.assert_allclose(jnp.sum(jnp.exp(policy) * estimate), exact, rtol=1e-5)


def test_importance_weight_makes_the_gradient_unbiased():
    """Tokens of an old policy; the weighted k3's mean gradient is the exact KL's, k3's is not."""
    logits, old, reference = jnp.array([[0.1, 1.0, -1.0], [0.7, 0.2, 0.0], [0.5, 0.0, 0.0]])
    old, reference = jax.nn.log_softmax(old), jax.nn.log_softmax(reference)
    mask = jnp.ones((1, 1, 3), bool)

    @jit
    @jax.grad
    def exact(x):
        logp = jax.nn.log_softmax(x)
        return jnp.sum(jnp.exp(logp) * (logp - reference))

    @functools.partial(jit, static_argnums=1)
    @jax.grad
    def estimate(x, weighted):
        logp = jax.nn.log_softmax(x)[None, None]
        kl = KLS["k3"](logp, reference[None, None], mask)
        if weighted:
            kl = importance_weighted(kl, token(logp, old[None, None], mask))
        return jnp.sum(jnp.exp(old) * kl)

    want = exact(logits)
    np.testing.assert_allclose(estimate(logits, True), want, atol=1e-6)
    assert np.abs(estimate(logits, False) - want).max() > 0.01


@pytest.mark.parametrize("name", KLS)
def test_garbage_at_masked_positions_reaches_neither_value_nor_gradient(batch, garbage, name):
    @jit
    @jax.value_and_grad
    def value_and_grad(logp, ref):
        return jnp.exp(KLS[name](logp, ref, batch["mask"])).sum()

    dirty, clean = (value_and_grad(b["logp"], b["logp_ref"]) for b in (garbage, batch))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
