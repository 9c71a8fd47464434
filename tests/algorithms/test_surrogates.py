"""Cases worked out by hand; test_loss.py holds the formulas on ragged data."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import jit

from grpo_jax.algorithms import SURROGATES, Algorithm
from grpo_jax.algorithms.algorithm import call
from grpo_jax.algorithms.surrogates import never


@functools.partial(jit, static_argnums=0)
@functools.partial(jax.value_and_grad, argnums=1)
def loss_and_gradient(algorithm, log_ratio, advantage):
    x, advantage = (jnp.full((1, 1, 1), y) for y in (log_ratio, advantage))
    return call(SURROGATES[algorithm.surrogate], algorithm, x, advantage, x, x == x).sum()


def at(surrogate, ratio, advantage, **fields):
    """Loss and its gradient in log w of a single token; logp = log w."""
    algorithm = Algorithm(surrogate=surrogate, **fields)
    return loss_and_gradient(algorithm, math.log(ratio), advantage)


@pytest.mark.parametrize(
    "ratio, advantage, fields, loss, gradient",
    [
        (1.0, 2.0, {}, -2.0, -2.0),
        (1.5, 2.0, {}, -2.4, 0.0),  # clipped above
        (0.5, 2.0, {}, -1.0, -1.0),  # the pessimistic side is free
        (0.5, -2.0, {}, 1.6, 0.0),  # clipped below
        (1.5, -2.0, {}, 3.0, 3.0),
        (1.25, 2.0, {"clip_high": 0.28}, -2.5, -2.5),
        (0.01, -2.0, {"clip_low": 10.0}, 0.02, 0.02),  # R1's clip has no lower side
        (5.0, -2.0, {"ratio_cap": 4.0}, 8.0, 0.0),
        (5.0, -2.0, {"dual_clip": 3.0}, 6.0, 0.0),
        (2.0, -2.0, {"dual_clip": 3.0}, 4.0, 4.0),
        (5.0, 2.0, {"dual_clip": 3.0}, -2.4, 0.0),  # only for A < 0
        # On a bound, as where an on-policy token lies on all of these, it is not yet clipped.
        (1.0, 2.0, {"clip_high": 0.0}, -2.0, -2.0),
        (1.0, -2.0, {"clip_low": 0.0}, 2.0, 2.0),
        (1.0, -2.0, {"dual_clip": 1.0}, 2.0, 2.0),
        (1.0, -2.0, {"ratio_cap": 1.0}, 2.0, 2.0),
    ],
)
def test_clip(ratio, advantage, fields, loss, gradient):
    got = at("clip", ratio, advantage, **fields)
    np.testing.assert_allclose(got, (loss, gradient), atol=1e-5)


@pytest.mark.parametrize(
    "ratio, fields, weight",
    [
        (1.1, {}, 1.1),
        (3.0, {}, 1.2),
        (0.1, {}, 0.8),
        (0.1, {"clip_low": 1.0}, 0.1),  # only the upper clip
    ],
)
def test_cispo_keeps_the_gradient_of_clipped_tokens(ratio, fields, weight):
    for advantage in (2.0, -2.0):
        loss, gradient = at("cispo", ratio, advantage, **fields)
        np.testing.assert_allclose(loss, -weight * advantage * math.log(ratio), atol=1e-5)
        np.testing.assert_allclose(gradient, -weight * advantage, atol=1e-5)


def test_sapo_is_the_policy_gradient_on_policy_and_fades_away_from_it():
    for advantage in (2.0, -2.0):
        np.testing.assert_allclose(at("sapo", 1.0, advantage)[1], -advantage, atol=1e-5)
        assert abs(at("sapo", 30.0, advantage)[1]) < 1e-3
    # The larger temperature fades faster.
    assert abs(at("sapo", 3.0, -2.0)[1]) < abs(at("sapo", 3.0, 2.0)[1])


@pytest.mark.parametrize(
    "log_ratio, advantage, mean",
    [
        ([0.5, 0.1], 2.0, (0.4 + 0.1) / 2),
        ([-0.5, 0.1], 2.0, (-0.5 + 0.1) / 2),
        ([-0.5, 0.1], -2.0, (-0.4 + 0.1) / 2),
        ([0.5, 0.1], -2.0, (0.5 + 0.1) / 2),
    ],
)
def test_gmpo_clips_the_greedy_side(log_ratio, advantage, mean):
    x = jnp.array([[[*log_ratio, 9.0]]])
    mask = jnp.array([[[True, True, False]]])
    algorithm = Algorithm(clip_low=0.4, clip_high=0.4)
    got = call(SURROGATES["gmpo"], algorithm, x, jnp.full(x.shape, advantage), x, mask)
    np.testing.assert_allclose(got, np.full((1, 1, 3), -advantage * math.exp(mean)), rtol=1e-5)


@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_gmpo_on_its_bounds_and_far_below_has_the_whole_gradient(advantage):
    for ratio, fields in ((1.0, {"clip_low": 0.0, "clip_high": 0.0}), (math.exp(-25), {})):
        free = {"clip_low": 1e9, "clip_high": 1e9} | fields
        loss, gradient = at("gmpo", ratio, advantage, **free)
        np.testing.assert_allclose((loss, gradient), (-advantage * ratio,) * 2, rtol=1e-4)


def clipped(surrogate, log_ratio, advantages, bound):
    """Where a surrogate says that it clips."""
    algorithm = Algorithm(clip_low=bound, clip_high=bound)
    where = getattr(SURROGATES[surrogate], "clips", never)
    return call(where, algorithm, log_ratio, advantages)


@pytest.mark.parametrize(
    "surrogate, low, high",
    [
        ("clip", [0, 0, 0, 1], [1, 0, 0, 0]),
        ("gmpo", [0, 0, 0, 1], [1, 0, 0, 0]),
        ("cispo", [0, 0, 1, 1], [1, 1, 0, 0]),
        ("sapo", [0, 0, 0, 0], [0, 0, 0, 0]),
        ("reinforce", [0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_clipped_tokens(surrogate, low, high):
    log_ratio = jnp.array([[[0.5, 0.5, -0.5, -0.5]]])
    advantages = jnp.array([[[1.0, -1.0, 1.0, -1.0]]])
    got = clipped(surrogate, log_ratio, advantages, 0.3)
    np.testing.assert_array_equal(got[0][0, 0], low)
    np.testing.assert_array_equal(got[1][0, 0], high)


def test_gmpo_counts_its_clips_in_the_log_ratio():
    x = jnp.full((1, 1, 1), 0.35)  # a ratio of 1.42: beyond 1.4, within exp(0.4)
    assert not clipped("gmpo", x, jnp.ones_like(x), 0.4)[1]
    assert clipped("clip", x, jnp.ones_like(x), 0.4)[1]


def test_a_new_surrogate_is_one_function(monkeypatch, batch):
    from grpo_jax.algorithms import policy_loss, token_weights, validate

    def squared(log_ratio, advantages, logp, mask, *, clip_high):
        return clip_high * log_ratio**2

    monkeypatch.setitem(SURROGATES, "squared", squared)
    algorithm = dataclasses.replace(Algorithm(), surrogate="squared", clip_high=3.0)
    validate(algorithm, group=4)
    weights = token_weights(batch["mask"], "sequence_sum")
    arrays = {"mask": batch["mask"], "weights": weights, "token_share": weights}
    arrays |= {"advantages": batch["values"], "logp_old": batch["logp_old"]}
    loss, _ = policy_loss(algorithm, batch["logp"], **arrays)
    difference = np.square(batch["logp"] - batch["logp_old"])
    np.testing.assert_allclose(loss, 3.0 * np.sum(weights * difference), rtol=1e-5)
