"""Rotary frequencies against Transformers' own, and the two layouts of a pair."""

import dataclasses
import math

import numpy as np
import pytest
from reference import SPARSE, TINY, rope

from grpo_jax.models.config import RopeScaling
from grpo_jax.models.rope import frequencies, query_scale, rotate

WIDTH, THETA = 32, 5e3
SCALINGS = {
    "linear": RopeScaling("linear", 4.0),
    "llama3": RopeScaling("llama3", 8.0, 512, low_frequency=1.0, high_frequency=4.0),
    "yarn": RopeScaling("yarn", 4.0, 512),
    "yarn_bounds": RopeScaling("yarn", 16.0, 512, beta_fast=20.0, beta_slow=2.0),
    "yarn_factor": RopeScaling("yarn", 4.0, 512, attention_factor=0.7),
    "yarn_mscale": RopeScaling("yarn", 40.0, 64, mscale=1.0, mscale_all_dim=0.7),
}


def config(scaling, **fields):
    return dataclasses.replace(
        TINY, head_dim=WIDTH, rope_theta=THETA, rope_scaling=scaling, **fields
    )


def theirs(s):
    """(frequencies, factor) as Transformers computes them."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("torch", reason="needs torch, in which Transformers computes")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": s.kind, "rope_theta": THETA, "factor": s.factor}
    rope |= {
        "llama3": {"low_freq_factor": s.low_frequency, "high_freq_factor": s.high_frequency},
        "yarn": {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow},
    }.get(s.kind, {})
    if s.original_length:
        rope["original_max_position_embeddings"] = s.original_length
    chosen = ("mscale", "mscale_all_dim", "attention_factor")
    rope |= {name: getattr(s, name) for name in chosen if getattr(s, name)}
    length = int((s.original_length or 512) * s.factor)
    c = transformers.LlamaConfig(
        head_dim=WIDTH, rope_parameters=rope, max_position_embeddings=length
    )
    frequency, factor = ROPE_INIT_FUNCTIONS[s.kind](c, "cpu")
    return frequency.numpy(), factor


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(name):
    s = SCALINGS[name]
    frequency, factor = frequencies(config(s), local=False)
    want, want_factor = theirs(s)
    np.testing.assert_allclose(frequency, want, rtol=1e-6)
    assert factor == pytest.approx(want_factor, rel=1e-6)
    plain = THETA ** (-np.arange(0, WIDTH, 2) / WIDTH)
    ratio = frequency / plain
    assert ratio[-1] == pytest.approx(1 / s.factor) and np.all(np.diff(ratio) <= 1e-6)
    if s.kind != "linear":  # fast pairs stay as they are
        assert ratio[0] == pytest.approx(1.0) and len(set(ratio.round(3))) > 2


def test_layers_with_a_window_may_have_their_own_base_unscaled():
    c = config(SCALINGS["linear"], rope_local_theta=10.0)
    frequency, factor = frequencies(c, local=True)
    np.testing.assert_allclose(frequency, 10.0 ** (-np.arange(0, WIDTH, 2) / WIDTH), rtol=1e-6)
    assert factor == 1.0
    same = frequencies(dataclasses.replace(c, rope_local_theta=0.0), local=True)[0]
    np.testing.assert_array_equal(same, frequencies(c, local=False)[0])


def test_deepseeks_temperature_scales_the_queries_of_latent_attention_alone():
    s = SCALINGS["yarn_mscale"]
    width = SPARSE.latent.nope_dim + SPARSE.latent.rope_dim
    plain = query_scale(SPARSE)
    assert plain == pytest.approx(width**-0.5)
    scaled = query_scale(dataclasses.replace(SPARSE, rope_scaling=s))
    assert scaled == pytest.approx(plain * (0.1 * 0.7 * math.log(40) + 1) ** 2)
    assert query_scale(config(s)) == pytest.approx(WIDTH**-0.5)
    assert query_scale(config(s, query_scale=0.25)) == 0.25


@pytest.mark.parametrize("interleaved", [False, True])
def test_pairs_are_halves_or_neighbours(interleaved):
    x = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)
    halves = np.concatenate([x[:, ::2], x[:, 1::2]], -1) if interleaved else x
    angle = np.arange(9)[None, None, :, None] * 50.0 ** (-np.arange(0, 8, 2) / 8)
    got = rotate(x[None, None, :, None], (0.5 * np.cos(angle), 0.5 * np.sin(angle)), interleaved)
    np.testing.assert_allclose(got[0, 0, :, 0], 0.5 * rope(halves, 50.0), atol=1e-5)
