import numpy as np
import pytest
from compiled import jit

from grpo_jax.algorithms import (
    PRESETS,
    Algorithm,
    combine_rewards,
    compute_advantages,
    soft_overlong,
    token_rewards,
)

NAN = np.nan
PARTS = np.array(
    [
        [[1.0, 0.0, NAN, 1.0], [0.0, 0.5, 0.5, NAN]],
        [[10.0, 30.0, 20.0, 0.0], [5.0, 7.0, 9.0, NAN]],
    ],
    np.float32,
)
WEIGHTS = (2.0, 0.1)

SUM, EACH = Algorithm(), Algorithm(reward_combination="normalize_each")

combine = jit(combine_rewards, static_argnums=(0, 2))


def test_sum_leaves_out_those_that_abstain():
    want = [[2 + 1, 0 + 3, 2, 2], [0.5, 1 + 0.7, 1 + 0.9, NAN]]
    np.testing.assert_allclose(combine(SUM, PARTS, WEIGHTS), want, rtol=1e-6)


def test_normalize_each():
    scores = np.zeros((2, 4))
    for weight, part in zip(WEIGHTS, PARTS.astype(np.float64), strict=True):
        for p in range(2):
            valid = ~np.isnan(part[p])
            group = part[p, valid]
            scores[p, valid] += weight * (group - group.mean()) / (group.std(ddof=1) + 1e-6)
    valid = ~np.isnan(PARTS).all(0)
    scores = (scores - scores[valid].mean()) / (scores[valid].std(ddof=1) + 1e-6)
    want = np.where(valid, scores, NAN)
    np.testing.assert_allclose(combine(EACH, PARTS, WEIGHTS), want, atol=1e-5)


def test_the_gdpo_preset_passes_normalised_rewards_through():
    parts = np.nan_to_num(PARTS)
    algorithm = PRESETS["gdpo"]
    rewards = combine(algorithm, parts, WEIGHTS)
    compute = jit(compute_advantages, static_argnums=0)
    advantages = np.asarray(compute(algorithm, rewards, np.ones((2, 4, 3), bool)))
    np.testing.assert_allclose(advantages[..., 0], rewards, atol=1e-6)


def test_normalize_each_without_spread_is_exactly_zero():
    parts = np.full((2, 2, 4), 0.1, np.float32)
    assert np.all(np.asarray(combine(EACH, parts, WEIGHTS)) == 0)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"reward_combination must be one of .*got 'mean'"):
        combine_rewards(Algorithm(reward_combination="mean"), PARTS, WEIGHTS)
    with pytest.raises(AssertionError):
        combine_rewards(SUM, PARTS, (1.0, 1.0, 1.0))
    for cache in (0, -1, 21):
        with pytest.raises(ValueError, match=r"overlong cache must be in \(0, 20\] tokens"):
            soft_overlong(np.zeros((1, 1)), 20, cache)


def test_soft_overlong():
    lengths = np.array([[1, 16, 17, 18, 20, 25]])
    want = [[0, 0, -0.25, -0.5, -1, -1]]
    np.testing.assert_allclose(soft_overlong(lengths, max_length=20, cache=4), want)


def test_token_rewards(batch):
    rewards, mask = batch["rewards"].copy(), batch["mask"]
    rewards[0, 0] = NAN
    kl = np.where(mask, batch["values"], NAN)
    got = np.asarray(token_rewards(rewards, mask, kl, beta=0.5))
    for p, g, t in np.ndindex(mask.shape):
        want = 0.0
        if mask[p, g, t]:
            want -= 0.5 * kl[p, g, t]
            if t == np.nonzero(mask[p, g])[0][-1] and (p, g) != (0, 0):
                want += rewards[p, g]
        np.testing.assert_allclose(got[p, g, t], want, atol=1e-6)
