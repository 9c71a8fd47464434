"""Low-rank adapters: what trains, what stays, and what they add, against NumPy."""

import dataclasses
import re

import flax
import jax
import numpy as np
import optax
import pytest
from tiny import compile_fast, reference  # noqa: F401

from grpo_jax.algorithms import Algorithm
from grpo_jax.learning.optimizer import Optimizer
from grpo_jax.learning.prepare import prepare
from grpo_jax.learning.state import init_state
from grpo_jax.learning.update import update
from grpo_jax.models.config import Lora
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.logps import completion_logps
from grpo_jax.sharding import make_mesh
from grpo_jax.training.sft import LIKELIHOOD
from grpo_jax.types import Batch, Rollouts, merged

LORA = Lora(rank=3, alpha=5.0, targets="attention/(q_b|kv_b|o)|ff/(shared/)?gate")
BASE = dataclasses.replace(reference.SPARSE, layers=2, mtp=0)
C = dataclasses.replace(BASE, lora=LORA)
P, S, G, T = 2, 6, 3, 5
PROMPTS = reference.make_prompts([6, 2], S, C.vocab_size)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, C.vocab_size, (P, G, T)).astype(np.int32)
MASK = np.arange(T) < RNG.integers(1, T + 1, (P, G))[..., None]
SGD = Optimizer(
    None, lambda _: optax.apply_if_finite(optax.inject_hyperparams(optax.sgd)(learning_rate=1.0), 9)
)
PARAMS = reference.random_params(BASE)


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


def config(scan):
    return dataclasses.replace(C, scan_layers=scan)


def fresh(scan=False):
    """A state that starts from PARAMS."""
    params = reference.stack_layers(PARAMS, BASE) if scan else PARAMS
    model, key = Decoder(config(scan)), jax.random.key(0)
    return init_state(model, SGD, key, make_mesh(), reference=True, params=params)


@pytest.fixture(scope="module", params=[False, True], ids=["listed", "scanned"])
def case(request):
    return request.param, fresh(request.param)


@pytest.fixture(scope="module")
def moved(case):
    """Adapters with nothing special about them."""
    draw = np.random.default_rng(1).normal
    return jax.tree.map(
        lambda x: 0.3 * draw(size=x.shape).astype(np.float32), case[1].policy.trained
    )


def logps(scan, params):
    return jax.jit(completion_logps, static_argnums=0)(
        Decoder(config(scan)), params, PROMPTS, TOKENS
    )[0]


def test_only_adapters_train_and_all_else_is_the_base(case):
    scan, state = case
    trained, base = flat(state.policy.trained), flat(state.policy.base)
    assert {k.split("/")[-1] for k in trained} == {"lora_a", "lora_b"}
    want = {k for k in base if k.endswith("/kernel") and re.search(LORA.targets, k)}
    assert {k.rsplit("/", 1)[0] for k in trained} == {k.rsplit("/", 1)[0] for k in want}
    whole = reference.stack_layers(PARAMS, BASE) if scan else PARAMS
    jax.tree.map(np.testing.assert_array_equal, state.policy.base, whole)
    moments = optax.adam(1.0).init(state.policy.trained)[0]
    assert jax.tree.structure(moments.mu) == jax.tree.structure(state.policy.trained)
    assert state.reference is None and state.policy.router is None
    for name in want:
        stem, kernel = name.rsplit("/", 1)[0], base[name]
        lead, (out, inputs) = kernel.shape[:-2], kernel.shape[-2:]
        assert trained[f"{stem}/lora_a"].shape == (*lead, 3, inputs)
        assert trained[f"{stem}/lora_b"].shape == (*lead, out, 3)
        assert np.abs(trained[f"{stem}/lora_a"]).max() > 0
        assert not np.any(trained[f"{stem}/lora_b"])


def test_fresh_adapters_change_nothing(case):
    scan, state = case
    np.testing.assert_array_equal(logps(scan, state.policy.full), logps(scan, state.policy.base))


def test_adapters_add_their_product_to_the_kernel(case, moved):
    """W + alpha / rank B A, in float64, without adapters, is the same model."""
    scan, state = case
    whole, adapters = flat(state.policy.base), flat(moved)
    for name in (k for k in adapters if k.endswith("lora_a")):
        stem = name.removesuffix("/lora_a")
        b, a = (np.asarray(adapters[f"{stem}/lora_{x}"], np.float64) for x in "ba")
        whole[f"{stem}/kernel"] = (whole[f"{stem}/kernel"] + 5.0 / 3 * b @ a).astype(np.float32)
    got = logps(scan, merged(state.policy.base, moved))
    want = logps(scan, flax.traverse_util.unflatten_dict(whole, sep="/"))
    np.testing.assert_allclose(got, want, atol=5e-5)
    assert np.abs(got - logps(scan, state.policy.base)).max() > 0.1


def test_the_base_is_the_reference_policy(case, moved):
    scan, state = case
    state = state.replace(policy=state.policy.replace(trained=moved))
    zeros = np.zeros(MASK.shape, np.float32)
    rollouts = Rollouts(
        prompts=PROMPTS,
        tokens=TOKENS,
        mask=MASK,
        logp=zeros,
        entropy=zeros,
        finished=np.ones((P, G), bool),
    )
    rewards = np.random.default_rng(2).normal(size=(P, G)).astype(np.float32)
    algorithm = Algorithm(beta=0.1, inner_epochs=2)
    options = {"model": Decoder(config(scan)), "algorithm": algorithm, "temperature": 1.0}
    batch = prepare(state, rollouts, rewards, **options)
    np.testing.assert_allclose(batch.logp_ref, logps(scan, state.policy.base), atol=1e-5)
    np.testing.assert_allclose(batch.logp_old, logps(scan, state.policy.full), atol=1e-5)


def test_an_update_moves_adapters_alone():
    state = fresh()
    before = jax.device_get((state.policy.trained, state.policy.base))
    zeros, ones = np.zeros(MASK.shape, np.float32), np.ones((P, G, 1), np.float32)
    options = {"model": Decoder(C), "optimizer": SGD, "algorithm": LIKELIHOOD}
    state, metrics = update(
        state,
        Batch(prompts=PROMPTS, tokens=TOKENS, mask=MASK, advantages=ones, logp_rollout=zeros),
        **options,
    )
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.policy.base), before[1])
    for name, x in flat(state.policy.trained).items():  # B is 0, so that A has no gradient yet
        changed = np.abs(np.asarray(x) - flat(before[0])[name]).max()
        assert changed > 1e-5 if name.endswith("lora_b") else changed == 0, name
    assert np.isfinite(float(metrics["loss"]))


def test_targets_that_match_nothing_are_refused():
    """Without adapters, the whole model would train."""
    lost = dataclasses.replace(C, lora=dataclasses.replace(LORA, targets="attention/x"))
    with pytest.raises(ValueError, match=r"model\.lora\.targets='attention/x' matches no"):
        init_state(Decoder(lost), SGD, jax.random.key(0), make_mesh(), reference=False)
