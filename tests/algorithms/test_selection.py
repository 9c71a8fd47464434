import jax
import numpy as np
import pytest
from compiled import jit

from grpo_jax.algorithms import Algorithm, select_tokens
from grpo_jax.algorithms.selection import clip_cov, covariance, kl_cov, top_entropy


def reference_covariance(batch):
    mask, a, logp = (batch[k] for k in ("mask", "values", "logp_rollout"))
    a, logp = a.astype(np.float64), logp.astype(np.float64)
    return np.where(mask, (a - a[mask].mean()) * (logp - logp[mask].mean()), 0.0)


def highest(score, mask, count):
    """The `count` highest-scoring valid positions, by a plain sort of pairs."""
    indices = sorted(zip(*np.nonzero(mask), strict=True), key=lambda i: -score[i])[:count]
    out = np.zeros(mask.shape)
    for i in indices:
        out[i] = 1
    return out


def test_covariance(batch):
    got = covariance(batch["mask"], batch["logp_rollout"], batch["values"])
    np.testing.assert_allclose(got, reference_covariance(batch), atol=1e-5)


@pytest.mark.parametrize("fraction", [0.2, 0.5, 1.0])
def test_top_entropy(batch, garbage, fraction):
    mask = batch["mask"]
    got = jit(top_entropy)(mask, entropy=garbage["entropy"], entropy_fraction=fraction)
    want = highest(batch["entropy"], mask, int(fraction * mask.sum()))
    np.testing.assert_array_equal(got, want)


def test_the_count_survives_rounding_and_ties():
    """0.2 of 15 tokens is 3, also where all have one entropy."""
    mask = np.ones((1, 3, 5), bool)
    ones = np.ones(mask.shape, np.float32)
    got = jit(top_entropy)(mask, entropy=ones, entropy_fraction=0.2)
    assert got.sum() == 3


def test_kl_cov(batch):
    mask = batch["mask"]
    arrays = {"logp_rollout": batch["logp_rollout"], "advantages": batch["values"]}
    select = jit(kl_cov)
    got = select(mask, **arrays, kl_cov_fraction=0.1)
    want = highest(reference_covariance(batch), mask, int(0.1 * mask.sum()))
    np.testing.assert_array_equal(got, want)
    assert select(mask, **arrays, kl_cov_fraction=1e-4).sum() == 1  # never fewer


def test_clip_cov_drops_a_random_few_between_the_bounds(batch):
    mask, cov = batch["mask"], reference_covariance(batch)
    between = mask & (cov > 0.1) & (cov < 1.0)
    arrays = {"logp_rollout": batch["logp_rollout"], "advantages": batch["values"]}
    bounds = {"clip_cov_low": 0.1, "clip_cov_high": 1.0}
    count = int(0.05 * mask.sum())
    assert between.sum() > count > 1
    select = jit(clip_cov)
    drops = []
    for seed in range(4):
        rng = jax.random.key(seed)
        keep = np.asarray(select(mask, **arrays, rng=rng, clip_cov_fraction=0.05, **bounds))
        dropped = keep == 0
        assert dropped.sum() == count and np.all(between[dropped])
        drops.append(dropped)
    assert any(np.any(drops[0] != other) for other in drops[1:])
    everyone = select(mask, **arrays, rng=rng, clip_cov_fraction=1.0, **bounds)
    np.testing.assert_array_equal(np.asarray(everyone) == 0, between)


def test_select_tokens_dispatches_and_names_what_is_missing(batch):
    assert select_tokens(Algorithm(), batch["mask"]) is None
    algorithm = Algorithm(token_selection="top_entropy", entropy_fraction=0.5)
    got = select_tokens(algorithm, batch["mask"], entropy=batch["entropy"])
    want = top_entropy(batch["mask"], entropy=batch["entropy"], entropy_fraction=0.5)
    np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match="'top_entropy' needs entropy"):
        select_tokens(algorithm, batch["mask"])
