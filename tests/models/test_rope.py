"""Rotary frequencies against Transformers' own, and the two layouts of a pair."""

import copy
import dataclasses
import math
import re

import numpy as np
import pytest
from reference import SPARSE, TINY, rope

from grpo_jax.models.config import RopeScaling
from grpo_jax.models.config_json import read_config
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


PLAIN = {
    **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 20},
    **{"intermediate_size": 8, "rms_norm_eps": 1e-6, "max_position_embeddings": 4096},
    **{"num_key_value_heads": 2, "head_dim": WIDTH},
}
ORIGINAL = "original_max_position_embeddings"
YARN, LINEAR = {"rope_type": "yarn", "factor": 4.0}, {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
# model_type and what its config.json says of positions.
FILES = {
    "nothing": ("llama", {}),
    "theta": ("llama", {"rope_theta": 5e5}),
    "theta inside": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "theta in both places": ("llama", {"rope_theta": 7.0, "rope_parameters": {"rope_theta": 5e5}}),
    "theta beside": ("llama", {"rope_theta": 5e5, "rope_parameters": LINEAR}),
    "yarn": ("qwen2", {"rope_scaling": YARN | {ORIGINAL: 1024}}),
    "yarn without a length": ("qwen2", {"rope_scaling": YARN}),
    "yarn, length at the top": ("qwen2", {"rope_scaling": YARN, ORIGINAL: 512}),
    "yarn, new, length at the top": ("llama", {"rope_parameters": YARN, ORIGINAL: 512}),
    "yarn, another length at the top": (
        "qwen2",
        {"rope_scaling": YARN | {ORIGINAL: 9}, ORIGINAL: 512},
    ),
    "yarn, by its length": ("llama", {"rope_parameters": YARN | {"factor": None, ORIGINAL: 512}}),
    "yarn, zeros": (
        "llama",
        {"rope_scaling": YARN | {"beta_fast": 0, "beta_slow": None, ORIGINAL: 512}},
    ),
    "llama3": ("llama", {"rope_scaling": LLAMA3 | {ORIGINAL: 1024}}),
    "llama3, length at the top": ("llama", {"rope_scaling": LLAMA3, ORIGINAL: 512}),
    "llama3, another length at the top": (
        "llama",
        {"rope_scaling": LLAMA3 | {ORIGINAL: 9}, ORIGINAL: 512},
    ),
    "both spellings": (
        "llama",
        {"rope_scaling": LINEAR, "rope_parameters": YARN | {"rope_theta": 3.0}},
    ),
    "the older name": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "gemma, nothing": ("gemma3_text", WINDOWS),
    "gemma, old": (
        "gemma3_text",
        WINDOWS | {"rope_theta": 5e5, "rope_local_base_freq": 300.0, "rope_scaling": LINEAR},
    ),
    "gemma, new": (
        "gemma3_text",
        WINDOWS
        | {
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 3e3},
            }
        },
    ),
    "gemma, length at the top": ("gemma3_text", WINDOWS | {"rope_scaling": YARN, ORIGINAL: 512}),
    "gemma, only full": (
        "gemma3_text",
        WINDOWS | {"rope_parameters": {"full_attention": LINEAR | {"rope_theta": 9e3}}},
    ),
}
REFUSED = {
    "yarn without factor": ({"rope_scaling": {"rope_type": "yarn"}}, "'yarn' needs 'factor'"),
    "yarn without factor, new": (
        {"rope_parameters": {"rope_type": "yarn", ORIGINAL: 512}},
        "'yarn' needs 'factor'",
    ),
    "linear without factor": ({"rope_scaling": {"type": "linear"}}, "'linear' needs 'factor'"),
    "linear by nothing": (
        {"rope_scaling": LINEAR | {"factor": None}},
        "factor=None; valid: a number",
    ),
    "llama3 without a bound": (
        {"rope_scaling": {k: v for k, v in LLAMA3.items() if "low" not in k}},
        "'llama3' needs 'low_freq_factor'",
    ),
    "a factor in words": (
        {"rope_scaling": LINEAR | {"factor": "4"}},
        "factor='4'; valid: a number",
    ),
    "theta of nothing": ({"rope_theta": None}, "rope_theta=None; valid: a number"),
    "no object": ({"rope_scaling": "yarn"}, "rope_scaling='yarn'; valid: a JSON object"),
}


def transformers_rope(kind, fields):
    """[(frequencies, factor)] of full layers and of those with a window, as a model has them."""
    torch = pytest.importorskip("torch", reason="needs torch, in which Transformers computes")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    c = transformers.AutoConfig.for_model(kind, **copy.deepcopy(PLAIN | fields))
    model = transformers.AutoModel.from_config(c)
    names = ("full_attention_", "sliding_attention_") if kind == "gemma3_text" else ("",)
    got = [
        (
            getattr(model.rotary_emb, f"{n}inv_freq"),
            getattr(model.rotary_emb, f"{n}attention_scaling"),
        )
        for n in names
    ]
    return [(f.to(torch.float32).numpy(), factor) for f, factor in got]


def ours(kind, fields):
    c = read_config({"model_type": kind} | copy.deepcopy(PLAIN | fields))
    return [frequencies(c, local) for local in (False, True)[: 1 + (kind == "gemma3_text")]]


@pytest.mark.parametrize("name", FILES)
def test_what_a_file_says_of_positions_is_what_transformers_reads(name):
    for (frequency, factor), (want, want_factor) in zip(
        ours(*FILES[name]), transformers_rope(*FILES[name]), strict=True
    ):
        np.testing.assert_allclose(frequency, want, rtol=1e-5)
        assert factor == pytest.approx(want_factor, rel=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_refuses_is_refused_by_name(name):
    fields, message = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        ours("llama", fields)
    with pytest.raises(Exception):  # noqa: B017  one of many kinds
        transformers_rope("llama", fields)
