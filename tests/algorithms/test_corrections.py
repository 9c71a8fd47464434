import jax
import numpy as np
import pytest
from compiled import jit

from grpo_jax.algorithms import CORRECTIONS


@pytest.mark.parametrize("name", CORRECTIONS)
def test_formula(batch, name):
    old, rollout, mask = (batch[k] for k in ("logp_old", "logp_rollout", "mask"))
    weight = np.exp(old.astype(np.float64) - rollout)
    above = weight > 1.2
    assert above[mask].any() and not above[mask].all()
    want = np.where(above, 1.2 if name == "truncate" else 0.0, weight)
    got = np.asarray(CORRECTIONS[name](old, rollout, mask, tis_cap=1.2))
    np.testing.assert_allclose(got[mask], want[mask], rtol=1e-5)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_huge_gaps_are_finite_and_detached(name):
    gap = np.array([[[1e4, -1e4, 0.0]]], np.float32)
    weight = lambda x: CORRECTIONS[name](x, 0 * gap, gap == gap, tis_cap=2.0)  # noqa: E731
    capped = 2.0 if name == "truncate" else 0.0
    np.testing.assert_allclose(weight(gap)[0, 0], [capped, 0, 1], atol=1e-6)
    assert np.all(np.asarray(jit(jax.grad(lambda x: weight(x).sum()))(gap)) == 0)
