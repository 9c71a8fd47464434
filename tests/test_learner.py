"""The update against loops over full rows in NumPy float64, and against itself cut into pieces."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from tiny import compile_fast, reference  # noqa: F401

from grpo_jax.algorithms import Algorithm
from grpo_jax.learning.microbatches import minibatches
from grpo_jax.learning.optimizer import Optimizer, make_optimizer
from grpo_jax.learning.policy import Policy
from grpo_jax.learning.prepare import prepare
from grpo_jax.learning.state import init_state
from grpo_jax.learning.update import refresh_reference, update
from grpo_jax.models.decoder import Decoder
from grpo_jax.sharding import make_mesh
from grpo_jax.types import Batch, Rollouts

C = dataclasses.replace(reference.TINY, layers=1)
MODEL = Decoder(C)
PARAMS, REFERENCE = reference.random_params(C), reference.random_params(C, seed=1)
P, S, G, T = 4, 6, 4, 5
BETA, CLIP, TEMPERATURE = 0.3, 0.2, 1.3
ALGORITHM = Algorithm(beta=BETA, clip_low=CLIP, clip_high=CLIP)
FIELDS = {
    **{"learning_rate": 0.01, "schedule": "constant", "warmup_steps": 1, "end_factor": 0.1},
    **{"weight_decay": 0.2, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "max_grad_norm": 0.1},
}
ADAMW = make_optimizer(ml_collections.ConfigDict(FIELDS), 10)
# With rate 1 the change is the gradient.
SGD = Optimizer(
    None, lambda _: optax.apply_if_finite(optax.inject_hyperparams(optax.sgd)(learning_rate=1.0), 9)
)
rng = np.random.default_rng(0)
PROMPTS = reference.make_prompts([6, 2, 5, 3], S, C.vocab_size)
TOKENS = rng.integers(1, C.vocab_size, (P, G, T)).astype(np.int32)
LENGTHS = rng.integers(1, T + 1, (P, G))
LENGTHS[1, 2] = 0  # left the loss
MASK = np.arange(T) < LENGTHS[..., None]


def numpy_logp(params):
    logits = reference.completion_logits(params, C, PROMPTS, TOKENS, MASK)
    return reference.stats(logits, TOKENS, TEMPERATURE)[0]


@functools.cache
def fresh_state(optimizer):
    return init_state(MODEL, optimizer, jax.random.key(0), make_mesh(), reference=True)


def state_with(optimizer, params=PARAMS):
    state = jax.tree.map(jnp.copy, fresh_state(optimizer))
    params, reference = jax.tree.map(jnp.asarray, (params, REFERENCE))
    return state.replace(policy=Policy(trained=params), reference=reference)


@pytest.fixture(scope="module")
def batch():
    """Ratios on both sides of the clip, advantages of both signs."""
    old = numpy_logp(PARAMS) + rng.normal(size=MASK.shape) * 0.3
    arrays = {
        "advantages": rng.normal(size=(P, G, 1)),
        "logp_rollout": np.zeros(MASK.shape),
        "logp_old": old,
        "logp_ref": numpy_logp(REFERENCE),
    }
    arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
    return Batch(prompts=PROMPTS, tokens=TOKENS, mask=MASK, **arrays)


def step(state, batch, optimizer=SGD, accumulation=1):
    return update(
        state,
        batch,
        model=MODEL,
        optimizer=optimizer,
        algorithm=ALGORITHM,
        temperature=TEMPERATURE,
        accumulation=accumulation,
    )


def gradient_at(params, batch, accumulation=1):
    state, metrics = step(state_with(SGD, params), batch, accumulation=accumulation)
    change = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, params, state.policy.trained)
    return change, metrics


def numpy_loss(params, batch):
    """DeepSeekMath's equation 3 with its KL estimator, completion by completion."""
    logp, losses = numpy_logp(params), []
    for p, g in np.argwhere(LENGTHS > 0):
        n, A = LENGTHS[p, g], float(batch.advantages[p, g, 0])
        losses.append(0.0)
        for t in range(n):
            ratio = np.exp(logp[p, g, t] - batch.logp_old[p, g, t])
            d = batch.logp_ref[p, g, t] - logp[p, g, t]
            gain = min(ratio * A, np.clip(ratio, 1 - CLIP, 1 + CLIP) * A)
            losses[-1] -= (gain - BETA * (np.exp(d) - d - 1)) / n
    return np.mean(losses)


def test_loss_and_gradient_are_those_of_full_rows_in_float64(batch):
    gradient, metrics = gradient_at(PARAMS, batch)
    assert float(metrics["loss"]) == pytest.approx(numpy_loss(PARAMS, batch), abs=1e-5)
    assert 0.05 < float(metrics["clip_ratio/region_mean"]) < 0.95
    shift = np.random.default_rng(3)
    for name in ("embed", "layer_0", "norm", "head"):
        direction = jax.tree.map(lambda x: shift.normal(size=x.shape), gradient[name])
        moved = [
            PARAMS | {name: jax.tree.map(lambda x, d, e=e: x + e * d, PARAMS[name], direction)}
            for e in (1e-6, -1e-6)
        ]
        slope = (numpy_loss(moved[0], batch) - numpy_loss(moved[1], batch)) / 2e-6
        pairs = zip(jax.tree.leaves(gradient[name]), jax.tree.leaves(direction), strict=True)
        found = sum((g * d).sum() for g, d in pairs)
        assert abs(slope) > 1e-3
        assert found == pytest.approx(slope, rel=1e-3, abs=1e-4), name


def numpy_adamw(params, gradients):
    """Loshchilov and Hutter's algorithm 2 on clipped gradients, after each of `gradients`."""
    m = v = jax.tree.map(np.zeros_like, gradients[0])
    params = jax.tree.map(np.float64, params)
    for t, gradient in enumerate(gradients, 1):
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
        gradient = jax.tree.map(lambda g, n=norm: g * min(1, 0.1 / n), gradient)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, gradient)
        v = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g**2, v, gradient)
        rate = {1: 0.005}.get(t, 0.01)  # a warm-up of one step

        def moved(path, x, m, v, t=t, rate=rate):
            decay = 0.0 if "scale" in jax.tree_util.keystr(path) else 0.2
            unbiased = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
            return x - rate * (unbiased + decay * x)

        params = jax.tree.map_with_path(moved, params, m, v)
    return params


def test_updates_are_adamw_in_float64(batch):
    state, gradients = state_with(ADAMW), []
    for number in (1, 2):
        gradients.append(gradient_at(jax.device_get(state.policy.trained), batch)[0])
        state, metrics = step(state, batch, ADAMW)
        assert int(state.step) == number
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients[-1])))
        assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-3) and norm > 0.1
    expected = numpy_adamw(PARAMS, gradients)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state.policy.trained, expected
    )
    gap = jax.tree.map(lambda a, b: np.abs(a - b).mean(), state.policy.trained, expected)
    assert np.mean(jax.tree.leaves(gap)) < 1e-5
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.reference), REFERENCE)


@pytest.mark.parametrize("parts", [2, P, 2 * P, P * G])
def test_accumulation_changes_nothing(batch, parts):
    whole, metrics = gradient_at(PARAMS, batch)
    pieces, same = gradient_at(PARAMS, batch, accumulation=parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), pieces, whole)
    for name, value in metrics.items():
        assert float(same[name]) == pytest.approx(float(value), abs=1e-5), name


def test_an_accumulation_that_fits_nowhere_is_named(batch):
    with pytest.raises(ValueError, match=r"optimizer\.accumulation=3 must divide .* 4 prompts"):
        step(state_with(SGD), batch, accumulation=3)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(batch):
    advantages = batch.advantages.copy()
    advantages[2, 1] = np.inf
    broken = batch.replace(advantages=advantages)
    state = step(state_with(ADAMW), batch, ADAMW)[0]
    counts = []
    for bad in (True, True, False, True):
        before = jax.device_get(
            (state.policy.trained, optax.tree_utils.tree_get(state.opt_state, "nu"))
        )
        state, metrics = step(state, broken if bad else batch, ADAMW)
        after = jax.device_get(
            (state.policy.trained, optax.tree_utils.tree_get(state.opt_state, "nu"))
        )
        same = jax.tree.map(np.array_equal, before, after)
        assert all(jax.tree.leaves(same)) == bad
        counts.append((int(metrics["skipped_in_a_row"]), int(metrics["skipped_updates"])))
    assert counts == [(1, 1), (2, 2), (0, 2), (1, 3)]


def test_another_learning_rate_and_number_of_steps_compile_nothing(batch):
    state, metrics = step(state_with(ADAMW), batch, ADAMW)
    programs = update._cache_size()
    fields = FIELDS | {"learning_rate": 0.5, "warmup_steps": 0, "weight_decay": 0.1}
    other = make_optimizer(ml_collections.ConfigDict(fields), 77)
    assert float(step(state, batch, other)[1]["learning_rate"]) == 0.5
    assert float(metrics["learning_rate"]) == pytest.approx(0.005)
    assert update._cache_size() == programs


def test_every_prompt_is_dealt_once_an_epoch(batch):
    algorithm = Algorithm(inner_epochs=3, minibatches=2)
    marked = batch.replace(advantages=np.arange(P, dtype=np.float32)[:, None, None] + MASK * 0)

    def deal(seed):
        parts = list(minibatches(marked, algorithm, seed))
        for part in parts:
            rows = part.advantages[:, 0, 0].astype(int)
            np.testing.assert_array_equal(part.tokens, TOKENS[rows])
            np.testing.assert_array_equal(part.prompts.tokens, PROMPTS.tokens[rows])
        return [tuple(part.advantages[:, 0, 0].astype(int)) for part in parts]

    hands = {tuple(deal((0, step))) for step in range(8)}
    for hand in hands:
        assert len(hand) == 6
        for a, b in zip(hand[::2], hand[1::2], strict=True):
            assert sorted(a + b) == list(range(P))
    assert len(hands) > 4 and any(len(set(hand[::2])) > 1 for hand in hands)
    assert deal((0, 1)) == deal((0, 1))
    whole = list(minibatches(batch, Algorithm(inner_epochs=2), (0,)))
    assert len(whole) == 2 and all(x is batch for x in whole)


def prepared(algorithm, rewards, finished):
    zeros = np.zeros(MASK.shape, np.float32)
    rollouts = Rollouts(
        prompts=PROMPTS, tokens=TOKENS, mask=MASK, logp=zeros, entropy=zeros, finished=finished
    )
    state = state_with(SGD)
    out = prepare(
        state, rollouts, rewards, model=MODEL, algorithm=algorithm, temperature=TEMPERATURE
    )
    return jax.device_get(out)


def test_a_rollout_used_once_without_beta_needs_no_log_probs():
    rewards = np.random.default_rng(1).normal(size=(P, G)).astype(np.float32)
    rewards[0, 1] = np.nan
    finished = np.ones((P, G), bool)
    finished[2, 3] = False
    out = prepared(Algorithm(mask_truncated=True), rewards, finished)
    assert out.logp_old is None and out.logp_ref is None and out.correction is None
    kept = MASK.copy()
    kept[0, 1] = kept[2, 3] = False
    np.testing.assert_array_equal(out.mask, kept)
    mean = np.nanmean(rewards, -1, keepdims=True)
    std = np.nanstd(rewards, -1, ddof=1, keepdims=True)
    expected = np.nan_to_num((rewards - mean) / (std + 1e-6))
    np.testing.assert_allclose(out.advantages[..., 0], expected, atol=1e-5)
    plain = prepared(Algorithm(), rewards, finished)
    assert plain.mask[2, 3].any() and not plain.mask[0, 1].any()


def test_reused_rollouts_and_beta_bring_old_and_reference_log_probs():
    rewards = np.random.default_rng(1).normal(size=(P, G)).astype(np.float32)
    algorithm = Algorithm(beta=0.1, inner_epochs=2)
    out = prepared(algorithm, rewards, np.ones((P, G), bool))
    for found, params in ((out.logp_old, PARAMS), (out.logp_ref, REFERENCE)):
        np.testing.assert_allclose(found[MASK], numpy_logp(params)[MASK], atol=1e-4)


@pytest.mark.parametrize("mix", [0.25, 1.0])
def test_the_reference_moves_towards_the_policy(mix):
    old, new = {"a": jnp.array([1.0, -2.0])}, {"a": jnp.array([3.0, 2.0])}
    moved = refresh_reference(old, new, mix)["a"]
    expected = mix * np.array([3.0, 2.0]) + (1 - mix) * np.array([1.0, -2.0])
    np.testing.assert_allclose(moved, expected, rtol=1e-6)
