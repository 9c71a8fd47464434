import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from reference import TINY, boxed_params

from grpo_jax.models.config import ModelConfig

BAD = {
    "vocab_size": 0,
    "hidden": 0,
    "layers": 0,
    "heads": 0,
    "kv_heads": 0,
    "head_dim": -2,
    "ff": 0,
    "rope_theta": 0.0,
    "norm_eps": -1e-6,
    "dtype": "float16",
    "param_dtype": "int8",
    "remat": "some",
}


@pytest.mark.parametrize("field", BAD)
def test_a_bad_value_is_one_line_that_names_the_field_and_the_value(field):
    with pytest.raises(ValueError) as error:
        ModelConfig(**{"vocab_size": 10, field: BAD[field]})
    assert f"model.{field}={BAD[field]!r}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"hidden": 30, "heads": 4}, ("model.hidden=30", "model.heads=4")),
        ({"heads": 4, "kv_heads": 3}, ("model.heads=4", "model.kv_heads=3")),
        ({"hidden": 12, "heads": 4}, ("model.head_dim=3",)),
        ({"head_dim": 5}, ("model.head_dim=5",)),
    ],
)
def test_sizes_that_do_not_fit_are_named(fields, named):
    with pytest.raises(ValueError) as error:
        ModelConfig(vocab_size=10, **fields)
    assert all(name in str(error.value) for name in named)
    assert "\n" not in str(error.value)


def test_head_dim_follows_hidden_and_heads_unless_given():
    assert ModelConfig(vocab_size=10, hidden=96, heads=6, kv_heads=3).head_dim == 16
    assert ModelConfig(vocab_size=10, hidden=30, heads=4, head_dim=8).head_dim == 8


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_every_dimension_of_every_parameter_has_a_logical_axis(scan, tied):
    boxed = boxed_params(dataclasses.replace(TINY, scan_layers=scan, tied=tied))
    specs = dict(jax.tree.leaves_with_path(nn.get_partition_spec(boxed)))
    shapes = jax.tree.leaves_with_path(nn.unbox(boxed))
    assert len(shapes) == 2 + (not tied) + 9 * (1 if scan else TINY.layers)
    sizes = {
        "vocab": TINY.vocab_size,
        "embed": TINY.hidden,
        "norm": TINY.hidden,
        "heads": TINY.heads * TINY.head_dim,
        "kv_heads": TINY.kv_heads * TINY.head_dim,
        "mlp": TINY.ff,
        "layers": TINY.layers,
    }
    for path, x in shapes:
        assert tuple(sizes[name] for name in specs[path]) == x.shape, path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_parameters_are_kept_in_param_dtype(dtype, param_dtype):
    boxed = boxed_params(dataclasses.replace(TINY, dtype=dtype, param_dtype=param_dtype))
    assert {x.dtype for x in jax.tree.leaves(boxed)} == {np.dtype(param_dtype)}
