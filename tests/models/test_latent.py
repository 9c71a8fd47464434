"""Latent attention and experts: sampler, learner and full rows are one function here too."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import SAMPLING, SPARSE, G, P, S, T, make_prompts, random_params, stack_layers
from test_decoder import assert_same_gradients, full_rows

from grpo_jax.engines.lockstep import sample
from grpo_jax.learning.policy import split
from grpo_jax.models.decoder import Decoder, init_cache, prefill
from grpo_jax.models.logps import completion_logps

C = dataclasses.replace(SPARSE, layers=2, mtp=0)
PARAMS = random_params(C)
PROMPTS = make_prompts([8, 1, 3], S, C.vocab_size)
WIDTH = C.latent.kv_rank + C.latent.rope_dim


@pytest.fixture(scope="module", params=[False, True], ids=["listed", "scanned"])
def case(request):
    """(config, parameters) in both layouts."""
    c = dataclasses.replace(C, scan_layers=request.param)
    return c, stack_layers(PARAMS, c) if request.param else PARAMS


@pytest.fixture(scope="module")
def rollouts(case):
    c, params = case
    key = jax.random.key(0)
    keys = jax.random.split(key, (len(PROMPTS.tokens), G))
    return sample(Decoder(c), params, PROMPTS, keys, sampling=SAMPLING)


def test_cache_and_prefix_hold_a_latent_and_one_rotary_key_for_all_heads(case):
    c, params = case
    layers = [s.stop - s.start for s in c.segments()] if c.scan_layers else [()] * c.layers
    lead = [(n,) if n else () for n in layers]
    cache = init_cache(c, P, G, T)
    assert [x.k.shape for x in cache] == [(*n, P, 1, G, WIDTH, T) for n in lead]
    _, prefix, _ = jax.eval_shape(partial(prefill, Decoder(c)), params, PROMPTS)
    assert [x.k.shape for x in prefix] == [(*n, P, 1, WIDTH, S) for n in lead]
    assert {x.v for x in (*cache, *prefix)} == {None}
    kept = sum(x.size for x in jax.tree.leaves(cache))
    assert kept == c.layers * P * G * T * WIDTH


@pytest.mark.parametrize("index", ["one for all", "each its own"])
def test_absorbed_projections_are_the_expanded_ones(case, index):
    """With a cache, queries meet latents; without one, keys and values are projected up."""
    c, params = case
    model = Decoder(c)
    tokens = np.random.default_rng(1).integers(1, c.vocab_size, (P, G, T)).astype(np.int32)
    start = jnp.int32(0) if index == "one for all" else jnp.zeros((P, G), jnp.int32)

    @jax.jit
    def both(params):
        _, prefix, lengths = prefill(model, params, PROMPTS)
        positions = lengths[:, None, None] + jnp.arange(T)
        forward = partial(
            *(model.apply, {"params": params}, tokens, positions),
            **{"prefix": prefix, "prefix_mask": PROMPTS.mask},
        )
        return forward()[0], forward(cache=init_cache(c, P, G, T), index=start)

    expanded, (absorbed, cache) = both(params)
    np.testing.assert_allclose(absorbed, expanded, atol=2e-5)
    assert all(np.abs(x.k).min(-1).max() > 0 for x in cache)


@partial(jax.jit, static_argnums=(0, 1))
def learn(forward, c, params, tokens, mask):
    """((loss, (logp, entropy)), gradients); the loss weights every token at random."""
    weights = np.random.default_rng(3).normal(size=(2, P, G, T)).astype(np.float32)

    def loss(params):
        out = forward(Decoder(c), params, PROMPTS, tokens)
        return jnp.sum(jnp.stack(out) * weights * mask), out

    return jax.value_and_grad(loss, has_aux=True)(params)


def test_sampler_learner_and_full_rows_agree_and_so_do_gradients(case, rollouts):
    c, params = case
    m = np.asarray(rollouts.mask)
    assert len(set(m.sum(-1).ravel().tolist())) > 3  # ragged
    (_, (logp, entropy)), got = learn(completion_logps, c, params, rollouts.tokens, m)
    (_, rows), want = learn(full_rows, C, PARAMS, rollouts.tokens, m)
    np.testing.assert_allclose(logp[m], rollouts.logp[m], atol=1e-4)
    np.testing.assert_allclose(entropy[m], rollouts.entropy[m], atol=1e-4)
    np.testing.assert_allclose(np.stack(rows)[:, m], np.stack((logp, entropy))[:, m], atol=1e-4)
    got, want = split(got), split(want)
    chosen = jax.tree.leaves((got.router, want.router))  # only choose, which has no gradient
    assert len(chosen) == 2 and not any(np.any(x) for x in chosen)
    want = stack_layers(want.trained, c) if c.scan_layers else want.trained
    assert_same_gradients(got.trained, want, rtol=3e-5)
