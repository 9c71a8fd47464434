import jax
import numpy as np
import pytest

from grpo_jax.algorithms import AGGREGATIONS, drop_truncated, token_weights


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_formula(batch, name):
    mask, loss = batch["mask"], batch["values"].astype(np.float64)
    rows = [loss[i][mask[i]] for i in np.ndindex(mask.shape[:2]) if mask[i].any()]
    assert len(rows) == 15  # one of 16 is fully masked
    want = {
        "sequence_mean": np.mean([row.mean() for row in rows]),
        "token_mean": np.concatenate(rows).mean(),
        "constant": np.mean([row.sum() / 9 for row in rows]),
        "sequence_sum": np.mean([row.sum() for row in rows]),
    }[name]
    weights = np.asarray(token_weights(mask, name, max_length=9))
    np.testing.assert_allclose(np.sum(weights * loss), want, rtol=1e-5)
    assert np.all(weights[~mask] == 0)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_fully_masked_completions_count_in_no_denominator(batch, name):
    mask = batch["mask"]
    padded = np.concatenate([mask, np.zeros_like(mask)], axis=1)
    weights = token_weights(padded, name)[:, : mask.shape[1]]
    np.testing.assert_array_equal(weights, token_weights(mask, name))


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_a_micro_batchs_own_denominators_would_be_wrong(batch, name):
    """Why the weights are counted on the whole minibatch and sliced."""
    whole = np.asarray(token_weights(batch["mask"], name))[:2]
    assert np.abs(whole - token_weights(batch["mask"][:2], name)).max() > 1e-3


def test_constant_defaults_to_the_padded_length(batch):
    mask = batch["mask"]
    np.testing.assert_array_equal(
        token_weights(mask, "constant"), token_weights(mask, "constant", mask.shape[-1])
    )


def test_jits(batch):
    jitted = jax.jit(token_weights, static_argnums=(1, 2))(batch["mask"], "sequence_mean", 6)
    np.testing.assert_allclose(jitted, token_weights(batch["mask"], "sequence_mean", 6), rtol=1e-6)


def test_an_unknown_name_is_refused(batch):
    with pytest.raises(ValueError, match=r"aggregation must be one of .*got 'mean'"):
        token_weights(batch["mask"], "mean")


def test_drop_truncated(batch):
    finished = np.arange(16).reshape(4, 4) % 3 > 0
    got = np.asarray(drop_truncated(batch["mask"], finished))
    np.testing.assert_array_equal(got[finished], batch["mask"][finished])
    assert not got[~finished].any()
