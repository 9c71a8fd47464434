import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import jit

from grpo_jax.algorithms import RATIOS
from grpo_jax.algorithms.ratios import LOG_RATIO_MAX


@pytest.mark.parametrize("name", RATIOS)
def test_formula(batch, name):
    mask = batch["mask"]
    got = np.asarray(RATIOS[name](batch["logp"], batch["logp_old"], mask))
    difference = batch["logp"].astype(np.float64) - batch["logp_old"]
    for p, g in np.ndindex(mask.shape[:2]):
        d = difference[p, g][mask[p, g]]
        want = d if name == "token" else np.full_like(d, d.mean() if len(d) else 0)
        np.testing.assert_allclose(got[p, g][mask[p, g]], want, atol=1e-6)


@pytest.mark.parametrize("name", RATIOS)
def test_only_ratios_that_would_overflow_are_bounded(name):
    mask = np.ones((1, 1, 1), bool)
    log_ratio = lambda x: RATIOS[name](np.full((1, 1, 1), x, np.float32), 0.0 * mask, mask)  # noqa: E731
    for ordinary in (-19.5, -1e-3, 0.0, 19.5):
        assert log_ratio(ordinary) == np.float32(ordinary)
    for huge in (200.0, 1e4):
        assert log_ratio(huge) == LOG_RATIO_MAX
        assert log_ratio(-huge) == -huge  # its exponential is 0


def test_gspo_token_has_each_tokens_own_gradient(batch):
    """Sequence spreads a token's gradient over its completion; gspo_token keeps it in place."""
    mask, old = batch["mask"], batch["logp_old"]
    pull = np.where(mask, np.arange(1, 7, dtype=np.float32), 0)

    def gradient(name):
        pulled = lambda x: jnp.sum(pull * RATIOS[name](x, old, mask))  # noqa: E731
        return jit(jax.grad(pulled))(batch["logp"])

    np.testing.assert_allclose(gradient("gspo_token"), pull, rtol=1e-6)
    mean = pull.sum(-1, keepdims=True) / np.maximum(mask.sum(-1, keepdims=True), 1)
    np.testing.assert_allclose(gradient("sequence"), mask * mean, rtol=1e-5)


@pytest.mark.parametrize("name", RATIOS)
def test_garbage_at_masked_positions_reaches_neither_value_nor_gradient(batch, garbage, name):
    @jit
    @jax.value_and_grad
    def value_and_grad(logp, old):
        return jnp.exp(RATIOS[name](logp, old, batch["mask"])).sum()

    dirty, clean = (value_and_grad(b["logp"], b["logp_old"]) for b in (garbage, batch))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
