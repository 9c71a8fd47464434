import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import unbox
from jax.extend.core import jaxprs_in_params
from reference import TINY, boxed_params, make_prompts, random_params, stats

from grpo_jax.models import logps
from grpo_jax.models.decoder import Decoder

P, G, T, V = 2, 9, 12, TINY.vocab_size
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(P, G, T, TINY.hidden)).astype(np.float32)
TOKENS = RNG.integers(0, V, (P, G, T)).astype(np.int32)
WEIGHTS = RNG.normal(size=(2, P, G, T)).astype(np.float32)


def config(tied):
    return dataclasses.replace(TINY, tied=tied)


def whole(model, params, hidden, tokens, temperature):
    logits = model.apply({"params": params}, hidden, method=Decoder.logits)
    logp = jax.nn.log_softmax(logits / temperature)
    chosen = jnp.take_along_axis(logp, tokens[..., None], -1)[..., 0]
    return chosen, -(jnp.exp(logp) * logp).sum(-1)


def value_and_grad(function, config, temperature):
    """((loss, (logp, entropy)), gradients of params and hidden)."""

    def loss(params, hidden):
        out = function(Decoder(config), params, hidden, TOKENS, temperature)
        return jnp.sum(jnp.stack(out) * WEIGHTS), out

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(random_params(config), HIDDEN)


@pytest.fixture(scope="module")
def expected():
    return {tied: value_and_grad(whole, config(tied), 0.7) for tied in (False, True)}


@pytest.mark.parametrize(("length", "tied"), [(1, False), (4, False), (6, True)])
def test_chunks_change_neither_value_nor_gradient(expected, length, tied, monkeypatch):
    (_, want), want_gradients = expected[tied]
    monkeypatch.setattr(logps, "CHUNK_ELEMENTS", P * G * length * V)
    assert logps.chunk_length(P, G, T, V) == length
    (_, got), gradients = value_and_grad(logps.token_logps, config(tied), 0.7)
    np.testing.assert_allclose(np.stack(got), np.stack(want), atol=1e-5)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, gradients, want_gradients)


def test_the_last_chunk_may_be_shorter(expected, monkeypatch):
    (_, want), _ = expected[False]
    short = 7  # in chunks of 3
    monkeypatch.setattr(logps, "CHUNK_ELEMENTS", P * G * 3 * V)
    assert logps.chunk_length(P, G, short, V) == 3
    model, params = Decoder(config(False)), random_params(config(False))
    hidden, tokens = HIDDEN[:, :, :short], TOKENS[:, :, :short]
    got = logps.token_logps(model, params, hidden, tokens, 0.7)
    np.testing.assert_allclose(np.stack(got), np.stack(want)[..., :short], atol=1e-5)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_log_softmax_stats_is_numpys(temperature):
    logits = 5 * RNG.normal(size=(40, V)).astype(np.float32)
    tokens = RNG.integers(0, V, 40)
    got = logps.log_softmax_stats(logits, tokens, temperature)
    want = stats(logits.astype(np.float64), tokens, temperature)
    np.testing.assert_allclose(np.stack(got), np.stack(want), atol=2e-5)


def test_log_softmax_stats_survives_big_logits():
    logits = jnp.array([[3e4, 0.0, -3e4], [1e4, 1e4, 0.0]])
    logp, entropy = logps.log_softmax_stats(logits, jnp.array([1, 0]), 1.0)
    np.testing.assert_allclose(logp, [-3e4, -np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(entropy, [0, np.log(2)], atol=1e-6)


def sizes(jaxpr):
    """The element count of every array in a jaxpr and the jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars if hasattr(v.aval, "size"))
        for inner in jaxprs_in_params(equation.params):
            yield from sizes(inner)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("length", [12, 7, 2])
def test_logits_are_never_held_whole(scan, length):
    config = dataclasses.replace(TINY, vocab_size=4001, scan_layers=scan)
    params = unbox(boxed_params(config))
    prompts = make_prompts([5, 2], 5, config.vocab_size)
    tokens = np.ones((P, G, length), np.int32)

    def largest(function):
        loss = lambda params: sum(x.sum() for x in function(Decoder(config), params))  # noqa: E731
        return max(sizes(jax.make_jaxpr(jax.value_and_grad(loss))(params).jaxpr))

    chunked = partial(logps.completion_logps, prompts=prompts, tokens=tokens, temperature=0.7)
    held = lambda model, params: whole(  # noqa: E731
        model, params, jnp.ones((*tokens.shape, config.hidden)), tokens, 0.7
    )
    all_logits = tokens.size * config.vocab_size
    assert largest(held) >= all_logits  # the walk sees what it looks for
    assert largest(chunked) < all_logits
