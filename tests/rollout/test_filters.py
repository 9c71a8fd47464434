import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import softmax, stats

from grpo_jax.engines.filters import Sampling, draw, filter_logits

LOGITS = 2 * np.random.default_rng(0).normal(size=(50, 13)).astype(np.float32)
TIED = np.round(LOGITS)  # many equal logits, also at the boundary


def brute_force(row, top_k, top_p, min_p):
    """The set of tokens that may be drawn; each filter goes through the tokens one by one."""
    kept = set(range(len(row)))
    if top_k:
        kept = {i for i in kept if sum(row[j] > row[i] for j in kept) < top_k}
    if top_p < 1:
        p = dict(zip(kept, softmax(np.array([row[i] for i in kept], np.float64)), strict=True))
        kept = {i for i in kept if sum(p[j] for j in kept if row[j] > row[i]) < top_p}
    if min_p:
        best = max(row[i] for i in kept)
        kept = {i for i in kept if np.exp(np.float64(row[i]) - best) >= min_p}
    return kept


@pytest.mark.parametrize("logits", [LOGITS, TIED], ids=["random", "tied"])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (1, 1.0, 0.0),
        (4, 1.0, 0.0),
        (0, 0.1, 0.0),
        (0, 0.83, 0.0),
        (0, 1.0, 0.07),
        (5, 0.83, 0.0),
        (6, 0.9, 0.2),
    ],
)
def test_kept_tokens_are_those_of_the_brute_force(logits, top_k, top_p, min_p):
    got = np.asarray(filter_logits(logits, top_k, top_p, min_p))
    kept = np.isfinite(got)
    want = [brute_force(row, top_k, top_p, min_p) for row in logits]
    assert [set(np.flatnonzero(row)) for row in kept] == want
    np.testing.assert_array_equal(got[kept], logits[kept])
    assert np.all(got[~kept] == -np.inf) and not kept.all()


def test_filters_that_are_off_or_too_wide_change_nothing():
    np.testing.assert_array_equal(filter_logits(LOGITS, 0, 1.0, 0.0), LOGITS)
    np.testing.assert_array_equal(filter_logits(LOGITS, 13, 1.0, 0.0), LOGITS)
    np.testing.assert_array_equal(filter_logits(LOGITS, 99, 1.0, 0.0), LOGITS)


def test_boundaries():
    even = jnp.zeros(4)  # 0.25 each: ties are kept by top_k and top_p alike
    assert np.isfinite(filter_logits(even, 2, 1.0, 0.0)).all()
    assert np.isfinite(filter_logits(even, 0, 0.5, 0.0)).all()
    halves = jnp.log(jnp.array([0.5, 0.25, 0.125, 0.125]))
    assert np.isfinite(filter_logits(halves, 0, 1.0, 0.5)).sum() == 2  # exactly min_p is kept
    assert np.isfinite(filter_logits(halves, 0, 1e-6, 0.0)).sum() == 1  # never none
    assert np.isfinite(filter_logits(halves, 0, 0.4999, 0.0)).sum() == 1
    assert np.isfinite(filter_logits(halves, 0, 0.5001, 0.0)).sum() == 2


def keys(*shape, seed=0):
    return jax.random.split(jax.random.key(seed), shape)


@pytest.mark.parametrize(
    ("temperature", "fields"), [(0.6, {}), (1.9, {"top_k": 3, "min_p": 0.1}), (0.0, {})]
)
def test_log_prob_and_entropy_are_of_the_unfiltered_policy(temperature, fields):
    sampling = Sampling(4, (0,), temperature=temperature, **fields)
    tokens, logp, entropy = draw(jnp.asarray(LOGITS), sampling, keys(*LOGITS.shape[:-1]))
    want = stats(LOGITS.astype(np.float64), tokens, temperature or 1.0)
    np.testing.assert_allclose(np.stack([logp, entropy]), np.stack(want), atol=1e-5)
    if temperature == 0:
        np.testing.assert_array_equal(tokens, LOGITS.argmax(-1))


def test_drawn_frequencies_follow_the_filtered_softmax():
    """Pearson's chi-square at a fixed seed; its mean is df, its standard deviation sqrt(2 df)."""
    rows, temperature = 20_000, 1.7
    sampling = Sampling(1, (0,), temperature=temperature, top_k=9)
    tokens, _, _ = draw(jnp.tile(LOGITS[0], (rows, 1)), sampling, keys(rows, seed=3))
    kept = sorted(brute_force(LOGITS[0], 9, 1.0, 0.0))
    expected = rows * softmax(LOGITS[0][kept].astype(np.float64) / temperature)
    counts = np.bincount(tokens, minlength=13)
    assert counts[kept].sum() == rows and expected.min() > 20
    chi_square = np.sum((counts[kept] - expected) ** 2 / expected)
    assert chi_square < 8 + 4 * np.sqrt(16)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("stop", 5),
        ("stop", [5]),
        ("stop", (5, -1)),
        ("stop", (None,)),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.0),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_field(field, value):
    with pytest.raises(ValueError) as error:
        Sampling(**{"max_tokens": 4, "stop": (0,), field: value})
    assert f"rollout.{field}={value!r}" in str(error.value)
    assert "\n" not in str(error.value)
