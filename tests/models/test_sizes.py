import dataclasses
import math

import jax
import pytest
from reference import boxed_params

from grpo_jax.models.config_json import read_config, write_config
from grpo_jax.models.sizes import SIZES, size
from grpo_jax.sharding import unbox

# What the publishers' pages and Transformers count.
PARAMETERS = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen2.5-math-1.5b": 1_543_714_304,
    "deepseek-r1-distill-qwen-1.5b": 1_777_088_000,
    "deepseek-r1-distill-qwen-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "mistral-7b": 7_248_023_552,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v2-236b": 235_741_434_880,
    "deepseek-v3-671b": 671_026_419_200,  # without the layer for multi-token prediction
}


def count(params):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))


@pytest.mark.parametrize("name", SIZES)
def test_the_number_of_parameters_is_the_published_one(name):
    c = dataclasses.replace(size(name), scan_layers=True)
    params = unbox(boxed_params(c))
    mtp = count(params.pop("mtp", {}))
    assert count(params) == PARAMETERS[name]
    # "11.5B unique parameters", DeepSeek-V3's README_WEIGHTS says, with no more digits.
    assert mtp == pytest.approx(11.5e9 if c.mtp else 0, rel=0.01)


@pytest.mark.parametrize("name", SIZES)
def test_a_size_survives_config_json(name):
    written = write_config(size(name), SIZES[name]["model_type"])
    assert read_config(written) == size(name)
    assert written["model_type"] == SIZES[name]["model_type"]


def test_an_unknown_size_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown model size 'Qwen2\.5-0\.5'.*'qwen2\.5-0\.5b'$"):
        size("Qwen2.5-0.5")
