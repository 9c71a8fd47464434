import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from reference import SPARSE, TINY, boxed_params

from grpo_jax.models.config import (
    Experts,
    Latent,
    Lora,
    ModelConfig,
    RopeScaling,
    model_config,
)

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
    "activation": "relu",
    "query_scale": -1.0,
    "attention_softcap": -1.0,
    "logit_softcap": float("nan"),
    "rope_local_theta": -5.0,
    "windows": (0, -4, 0, 0),
    "mtp": 2,
    "mtp_weight": -0.1,
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
        ({"windows": (4,)}, ("model.windows", "1 entries", "4 layers")),
        ({"experts": Experts(4, 2, 8, dense=(1, 4))}, ("model.experts.dense", "4, of 4 layers")),
    ],
)
def test_sizes_that_do_not_fit_are_named(fields, named):
    with pytest.raises(ValueError) as error:
        ModelConfig(vocab_size=10, **fields)
    assert all(name in str(error.value) for name in named)
    assert "\n" not in str(error.value)


MOE = {"count": 8, "active": 2, "ff": 4}
MLA = {"kv_rank": 8, "nope_dim": 4, "rope_dim": 4, "v_dim": 4}


@pytest.mark.parametrize(
    ("part", "fields", "named"),
    [
        (RopeScaling, {"kind": "ntk"}, "model.rope_scaling.kind='ntk'"),
        (RopeScaling, {"kind": "linear", "factor": 0.5}, "model.rope_scaling.factor=0.5"),
        (RopeScaling, {"kind": "yarn", "factor": 2.0}, "model.rope_scaling.original_length=0"),
        (Latent, MLA | {"v_dim": 0}, "model.latent.v_dim=0"),
        (Latent, MLA | {"rope_dim": 3}, "model.latent.rope_dim=3"),
        (Latent, MLA | {"q_rank": -1}, "model.latent.q_rank=-1"),
        (Experts, MOE | {"active": 9}, "model.experts.active=9: valid: 1 to 8"),
        (Experts, MOE | {"active": 0}, "model.experts.active=0"),
        (Experts, MOE | {"ff": 0}, "model.experts.ff=0"),
        (Experts, MOE | {"groups": 3}, "model.experts.count=8 is not divisible by groups=3"),
        (Experts, MOE | {"groups": 4, "top_groups": 5}, "model.experts.top_groups=5 of 4 groups"),
        (Experts, MOE | {"groups": 4, "active": 3}, "model.experts.active=3: valid: 1 to 2"),
        (
            Experts,
            MOE | {"groups": 8, "top_groups": 2, "group_score": "top2"},
            "needs two experts a group",
        ),
        (Experts, MOE | {"score": "tanh"}, "model.experts.score='tanh'"),
        (Experts, MOE | {"group_score": "sum"}, "model.experts.group_score='sum'"),
        (Experts, MOE | {"bias_rate": -1.0}, "model.experts.bias_rate=-1.0"),
        (Lora, {"rank": -1}, "model.lora.rank=-1"),
        (Lora, {"rank": 2, "alpha": 0.0}, "model.lora.alpha=0.0"),
        (Lora, {"targets": "attention/(q"}, "model.lora.targets='attention/(q' is no regular"),
    ],
)
def test_a_bad_value_of_a_part_is_named_in_one_line(part, fields, named):
    with pytest.raises(ValueError) as error:
        part(**fields)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_parts_may_be_plain_fields():
    fields = {"experts": MOE | {"dense": [0]}, "lora": {"rank": 2}, "layers": 2}
    c = model_config({"vocab_size": 10, **fields})
    assert c.experts == Experts(8, 2, 4, dense=(0,)) and c.lora == Lora(2)
    assert [tuple(s) for s in c.segments()] == [
        ("layers_0", 0, 1, False),
        ("layers_1", 1, 2, True),
    ]


@pytest.mark.parametrize("scan", [False, True])
def test_every_dimension_of_sparse_and_adapted_parameters_is_named(scan):
    c = dataclasses.replace(SPARSE, scan_layers=scan, lora=Lora(rank=2))
    boxed = boxed_params(c)
    specs = dict(jax.tree.leaves_with_path(nn.get_partition_spec(boxed)))
    for path, x in jax.tree.leaves_with_path(nn.unbox(boxed)):
        assert len(specs[path]) == x.ndim, path
        if path[-1].key in ("gate", "up", "down"):
            assert specs[path][-3] == "experts" and x.shape[-3] == c.experts.count


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
