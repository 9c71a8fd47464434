"""Sampler, learner and plain full rows are one function, and that function is the NumPy one."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import (
    SAMPLING,
    TINY,
    G,
    P,
    S,
    T,
    completion_logits,
    make_prompts,
    random_params,
    stack_layers,
    stats,
)

from grpo_jax.engines.lockstep import sample
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.logps import completion_logps

V = TINY.vocab_size
PROMPTS = make_prompts([8, 1, 3], S, V)
WEIGHTS = np.random.default_rng(3).normal(size=(2, P, G, T)).astype(np.float32)


def config(scan=False, tied=False, **fields):
    return dataclasses.replace(TINY, scan_layers=scan, tied=tied, **fields)


def params(scan=False, tied=False):
    unstacked = random_params(config(tied=tied))
    return stack_layers(unstacked) if scan else unstacked


def shared(model, params, prompts, tokens):
    return completion_logps(model, params, prompts, tokens)


def full_rows(model, params, prompts, tokens):
    """P G rows of prompt and completion, each forwarded on its own."""
    rows = jnp.concatenate([jnp.repeat(prompts.tokens, G, 0), tokens.reshape(P * G, T)], 1)
    real = jnp.concatenate([jnp.repeat(prompts.mask, G, 0), jnp.ones((P * G, T), bool)], 1)
    positions = jnp.maximum(real.cumsum(-1) - 1, 0)
    variables = {"params": params}
    hidden, _ = model.apply(variables, rows[:, None], positions[:, None], mask=real)
    logits = model.apply(variables, hidden[:, :, S - 1 : -1], method=Decoder.logits)
    logp = jax.nn.log_softmax(logits.reshape(P, G, T, V))
    entropy = -(jnp.exp(logp) * logp).sum(-1)
    return jnp.take_along_axis(logp, tokens[..., None], -1)[..., 0], entropy


@partial(jax.jit, static_argnums=(0, 1))
def learn(forward, config, params, prompts, tokens, mask):
    """((loss, (logp, entropy)), gradients); the loss weights every token at random."""

    def loss(params):
        out = forward(Decoder(config), params, prompts, tokens)
        return jnp.sum(jnp.stack(out) * WEIGHTS * mask), out

    return jax.value_and_grad(loss, has_aux=True)(params)


def assert_same_gradients(got, want, rtol=1e-5):
    def check(path, a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert error < rtol, f"{jax.tree_util.keystr(path)}: relative error {error:.1e}"

    jax.tree_util.tree_map_with_path(check, got, want)


@pytest.fixture(scope="module", params=[False, True], ids=["listed, head", "scanned, tied"])
def case(request):
    """One parameter layout, what it sampled, and full rows through listed layers."""
    scan = tied = request.param
    c, weights = config(scan, tied), params(scan, tied)
    out = rollout(c, weights)
    batch = (PROMPTS, out.tokens, out.mask)
    got = learn(shared, c, weights, *batch)
    return c, out, got, learn(full_rows, config(False, tied), params(False, tied), *batch)


@pytest.fixture(scope="module")
def rollouts():
    return rollout(TINY, params())


def rollout(config, params, prompts=PROMPTS):
    key = jax.random.key(0)
    keys = jax.random.split(key, (len(prompts.tokens), G))
    return sample(Decoder(config), params, prompts, keys, sampling=SAMPLING)


def test_sampler_learner_and_full_rows_agree_with_numpy(case):
    c, out, ((_, got_shared), _), ((_, got_full), _) = case
    assert len(set(out.mask.sum(-1).ravel().tolist())) > 3  # ragged
    m = np.asarray(out.mask)
    logits = completion_logits(params(tied=c.tied), c, PROMPTS, out.tokens, m)
    want = np.stack(stats(logits, out.tokens))[:, m]
    assert want[0].min() < -4 and want[0].max() > -1  # neither uniform nor certain
    sampled = (out.logp, out.entropy)
    for name, got in {"sampler": sampled, "learner": got_shared, "rows": got_full}.items():
        np.testing.assert_allclose(np.stack(got)[:, m], want, atol=1e-4, err_msg=name)


def test_gradient_through_the_shared_prompt_is_that_of_full_rows(case):
    c, _, (_, got), (_, want) = case
    assert_same_gradients(got, stack_layers(want) if c.scan_layers else want)


def test_gradient_along_a_direction_is_numpys_difference_quotient(rollouts):
    rng = np.random.default_rng(5)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params())
    m = np.asarray(rollouts.mask)

    def loss(step):
        moved = jax.tree.map(lambda x, d: x.astype(np.float64) + step * d, params(), direction)
        logits = completion_logits(moved, TINY, PROMPTS, rollouts.tokens, m)
        return np.sum(np.stack(stats(logits, rollouts.tokens)) * WEIGHTS * m)

    _, gradients = learn(shared, TINY, params(), PROMPTS, rollouts.tokens, rollouts.mask)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: np.sum(g * d), gradients, direction)))
    np.testing.assert_allclose(slope, (loss(1e-5) - loss(-1e-5)) / 2e-5, rtol=1e-4)


@pytest.mark.parametrize(("remat", "scan"), [("full", True), ("dots", False)])
def test_gradient_is_the_same_under_remat(rollouts, remat, scan):
    batch = (PROMPTS, rollouts.tokens, rollouts.mask)
    _, want = learn(full_rows, TINY, params(), *batch)
    _, got = learn(shared, config(scan, remat=remat), params(scan), *batch)
    assert_same_gradients(got, stack_layers(want) if scan else want)


def test_content_of_padding_is_irrelevant(rollouts):
    """Bit for bit: another token where the prompt is padded, or after a completion's end."""
    m = np.asarray(rollouts.mask)
    junk = np.random.default_rng(7).integers(0, V, 1000)
    prompts = PROMPTS.replace(
        tokens=np.where(PROMPTS.mask, PROMPTS.tokens, np.resize(junk, (P, S))).astype(np.int32)
    )
    tokens = np.where(m, rollouts.tokens, np.resize(junk, (P, G, T))).astype(np.int32)
    assert np.any(prompts.tokens != PROMPTS.tokens) and np.any(tokens != rollouts.tokens)
    (_, want), want_gradients = learn(shared, TINY, params(), PROMPTS, rollouts.tokens, m)
    (_, got), got_gradients = learn(shared, TINY, params(), prompts, tokens, m)
    np.testing.assert_array_equal(np.stack(got)[:, m], np.stack(want)[:, m])
    assert_same_gradients(got_gradients, want_gradients, rtol=1e-6)
    again = rollout(TINY, params(), prompts)
    for name in ("tokens", "mask", "logp", "entropy", "finished"):
        np.testing.assert_array_equal(getattr(again, name), getattr(rollouts, name), name)


def test_padding_gets_no_gradient(rollouts):
    """Token 0 pads the prompts; where no completion holds it, its embedding must not move."""
    tokens = np.where(rollouts.mask & (rollouts.tokens == 0), 1, rollouts.tokens)
    batch = (params(), PROMPTS, tokens, rollouts.mask)
    _, gradients = learn(shared, TINY, *batch)
    moved = np.abs(gradients["embed"]["embedding"]).sum(-1)
    assert moved[0] == 0 and np.count_nonzero(moved) > V // 2


def test_bfloat16_sampler_and_learner_agree_loosely():
    """bfloat16 keeps 8 bits, so that each rounding is off by up to 2**-9 of a logit; some 10 are in
    a row, and less is expected, since they do not all add up.
    """
    c = config(dtype="bfloat16", layers=1)
    weights = random_params(c)
    out = rollout(c, weights)
    logp, entropy = jax.jit(shared, static_argnums=0)(Decoder(c), weights, PROMPTS, out.tokens)
    assert {x.dtype for x in (out.logp, out.entropy, logp, entropy)} == {np.dtype("float32")}
    m = np.asarray(out.mask)
    logits = completion_logits(weights, c, PROMPTS, out.tokens, m)
    want, bound = stats(logits, out.tokens)[0], 10 * 2**-9 * np.abs(logits[m]).max()
    assert np.abs(out.logp - logp)[m].max() < bound
    assert 1e-4 < np.abs(logp - want)[m].max() < bound  # computed in bfloat16 indeed


def test_bfloat16_gradients_are_in_the_parameters_dtype():
    model, tokens = Decoder(config(dtype="bfloat16")), np.zeros((P, G, T), np.int32)
    loss = lambda params: shared(model, params, PROMPTS, tokens)[0].sum()  # noqa: E731
    gradients = jax.eval_shape(jax.grad(loss), params())
    assert {x.dtype for x in jax.tree.leaves(gradients)} == {np.dtype("float32")}
