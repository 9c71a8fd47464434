"""The update of a model with experts: the balance loss, and biases that only load moves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from tiny import compile_fast, reference  # noqa: F401

from grpo_jax.learning.optimizer import Optimizer, make_optimizer
from grpo_jax.learning.policy import split
from grpo_jax.learning.state import TrainState
from grpo_jax.learning.update import update
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.forward import forward_group
from grpo_jax.models.logps import token_logps
from grpo_jax.training.sft import LIKELIHOOD
from grpo_jax.types import Batch

GAMMA, ALPHA = 0.01, 0.7
EXPERTS = dataclasses.replace(reference.SPARSE.experts, bias_rate=GAMMA, balance=ALPHA)
C = dataclasses.replace(reference.TINY, layers=2, experts=EXPERTS)  # one dense, one sparse
MODEL, PARAMS = Decoder(C), reference.random_params(C)
P, S, G, T = 4, 6, 4, 5
PROMPTS = reference.make_prompts([6, 2, 5, 3], S, C.vocab_size)
RNG = np.random.default_rng(0)
MASK = np.arange(T) < RNG.integers(1, T + 1, (P, G))[..., None]
BATCH = Batch(
    prompts=PROMPTS,
    tokens=RNG.integers(1, C.vocab_size, (P, G, T)).astype(np.int32),
    mask=MASK,
    advantages=np.ones((P, G, 1), np.float32),
    logp_rollout=np.zeros(MASK.shape, np.float32),
)
FIELDS = {
    **{"learning_rate": 0.01, "schedule": "constant", "warmup_steps": 0, "end_factor": 0.1},
    **{"weight_decay": 0.5, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "max_grad_norm": 10.0},
}
ADAMW = make_optimizer(ml_collections.ConfigDict(FIELDS), 10)
RATE = 2.0**12
SGD = Optimizer(
    None,
    lambda _: optax.apply_if_finite(optax.inject_hyperparams(optax.sgd)(learning_rate=RATE), 9),
)


def state_with(optimizer):
    policy = split(jax.tree.map(jnp.asarray, PARAMS))
    assert policy.base is None
    opt_state = optimizer.init(policy.trained)
    return TrainState(step=jnp.int32(0), policy=policy, opt_state=opt_state, rng=jax.random.key(0))


def step(state, optimizer, accumulation=1, batch=BATCH):
    options = {"model": MODEL, "optimizer": optimizer, "algorithm": LIKELIHOOD}
    return update(state, batch, accumulation=accumulation, **options)


@functools.cache
def gradient(accumulation):
    """(gradient, metrics, router biases after)."""
    before = jax.device_get(state_with(SGD).policy.trained)
    state, metrics = step(state_with(SGD), SGD, accumulation)
    change = jax.tree.map(lambda a, b: (a - np.asarray(b)) / RATE, before, state.policy.trained)
    return change, metrics, jax.device_get(state.policy.router)


@functools.cache
def forwarded():
    """(mean of -log p over tokens, Routing), without an update."""

    @jax.jit
    def forward(params):
        hidden, _, routing = forward_group(MODEL, params, PROMPTS, BATCH.tokens, MASK)
        logp, _ = token_logps(MODEL, params, hidden, BATCH.tokens)
        return -jnp.where(MASK, logp, 0.0).sum() / MASK.sum(), routing

    return forward(PARAMS)


def test_biases_move_by_gamma_against_the_load_and_by_nothing_else():
    state = state_with(ADAMW)
    held = {jax.tree_util.keystr(k) for k, _ in jax.tree.leaves_with_path(state.opt_state)}
    assert not any("router_bias" in k for k in held) and any("'router'" in k for k in held)
    before = jax.device_get(state.policy.router)["layer_1"]["ff"]["router_bias"]
    load = np.asarray(forwarded()[1].load["layer_1"]["ff"]["router_bias"])
    assert load.sum() == EXPERTS.active * MASK.sum() and load.max() > load.min()
    state, metrics = step(state, ADAMW)
    after = np.asarray(state.policy.router["layer_1"]["ff"]["router_bias"])
    want = np.where(load > load.mean(), -GAMMA, np.where(load < load.mean(), GAMMA, 0.0))
    np.testing.assert_allclose(after - before, want, atol=1e-7)
    assert float(metrics["moe/load_max"]) == pytest.approx(load.max() / load.mean())
    assert float(metrics["moe/load_min"]) == pytest.approx(load.min() / load.mean())


def test_biases_stay_where_an_update_is_skipped():
    broken = BATCH.replace(advantages=BATCH.advantages * np.float32(np.inf))
    state, metrics = step(state_with(ADAMW), ADAMW, batch=broken)
    assert int(metrics["skipped_updates"]) == 1
    before = PARAMS["layer_1"]["ff"]["router_bias"]
    np.testing.assert_array_equal(state.policy.router["layer_1"]["ff"]["router_bias"], before)


def test_the_balance_loss_is_a_mean_over_completions():
    _, metrics, _ = gradient(1)
    likelihood, routing = forwarded()
    balance = float(metrics["moe/balance"])
    assert balance == pytest.approx(float(routing.balance) / (P * G), rel=1e-5)
    assert 0.5 < balance < EXPERTS.count
    assert float(metrics["loss"]) == pytest.approx(float(likelihood) + ALPHA * balance, rel=1e-5)


def test_accumulation_changes_neither_gradient_nor_load():
    """Not even in parts of groups, whose sequences still have their own balance."""
    (whole, metrics, router), (pieces, same, moved) = gradient(1), gradient(2 * P)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), pieces, whole)
    jax.tree.map(np.testing.assert_array_equal, moved, router)
    for name, value in metrics.items():
        assert float(same[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-5), name
