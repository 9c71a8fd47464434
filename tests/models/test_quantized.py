"""Kernels in few bits: what they lose, and that nothing else changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import TINY, random_params, stack_layers

from grpo_jax.models.config import Lora
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.lora import merge_adapters
from grpo_jax.models.quantized import dense, is_quantized, quantize_kernels

pytest.importorskip("qwix", reason="the extra grpo_jax[quantized] is not installed")
TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 1, 6)).astype(np.int32)
POSITIONS = np.arange(6)[None, None]


def test_int8_rounds_each_row_to_127_steps():
    kernel = np.random.default_rng(1).normal(size=(5, 12)).astype(np.float32)
    packed = quantize_kernels({"q": {"kernel": kernel}}, "int8")["q"]["kernel"]
    assert packed.qvalue.dtype == jnp.int8 and packed.qvalue.shape == kernel.shape
    step = np.abs(kernel).max(-1, keepdims=True) / 127
    np.testing.assert_allclose(packed.scale, step, rtol=0.01)  # or / 127.5, as the library likes
    steps = np.clip(np.round(kernel / packed.scale), -128, 127)
    np.testing.assert_array_equal(packed.qvalue, steps)
    np.testing.assert_allclose(dense(packed), steps * packed.scale, rtol=1e-6)


@pytest.mark.parametrize("kind", ["int4", "nf4"])
def test_four_bits_have_sixteen_levels_a_tile(kind):
    kernel = np.random.default_rng(1).normal(size=(3, 128)).astype(np.float32)
    got = np.asarray(dense(quantize_kernels({"kernel": kernel}, kind)["kernel"]))
    for row in got.reshape(6, 64):
        assert 4 < len(np.unique(row.round(6))) <= 16
    assert 0.01 < np.abs(got - kernel).mean() < 0.15


@pytest.mark.parametrize("scan", [False, True], ids=["listed", "scanned"])
def test_a_model_computes_with_the_rounded_kernels(scan):
    c = dataclasses.replace(TINY, scan_layers=scan, lora=Lora(rank=2, base="int8"))
    params = random_params(dataclasses.replace(TINY))
    params = stack_layers(params, c) if scan else params
    packed = quantize_kernels(params, "int8")
    leaves = jax.tree.leaves(packed, is_leaf=is_quantized)
    assert sum(map(is_quantized, leaves)) == (7 if scan else 14)
    rounded = merge_adapters(c, packed)
    got, want = (Decoder(c).apply({"params": p}, TOKENS, POSITIONS)[0] for p in (packed, rounded))
    np.testing.assert_allclose(got, want, atol=1e-5)
    exact = Decoder(c).apply({"params": params}, TOKENS, POSITIONS)[0]
    assert 1e-4 < np.abs(got - exact).max() < 0.3
