"""config.json as it was published, in every spelling there has been, and what is refused."""

import dataclasses

import pytest
from reference import TINY

from grpo_jax.models.config import Experts, Latent, RopeScaling
from grpo_jax.models.config_json import architecture, read_config, write_config
from grpo_jax.models.sizes import SIZES, size

# Whole files, with all that says nothing of the architecture.
PUBLISHED = {
    "llama-3.2-1b": {
        **{"architectures": ["LlamaForCausalLM"], "attention_bias": False},
        **{"attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": 128001},
        **{"head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02},
        **{"intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False},
        **{"model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16},
        **{"num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05},
        "rope_scaling": {
            **{"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0},
            **{"original_max_position_embeddings": 8192, "rope_type": "llama3"},
        },
        **{"rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16"},
        **{"transformers_version": "4.45.0.dev0", "use_cache": True, "vocab_size": 128256},
    },
    "qwen2.5-0.5b": {
        **{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0},
        **{"bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu"},
        **{"hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864},
        **{"max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2"},
        **{"num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2},
        **{"rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768},
        **{"tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True},
        **{"use_mrope": False, "use_sliding_window": False, "vocab_size": 151936},
    },
    "qwen3-30b-a3b": {
        **{"architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False},
        **{"attention_dropout": 0.0, "decoder_sparse_step": 1, "head_dim": 128},
        **{"hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144},
        **{"max_position_embeddings": 40960, "max_window_layers": 48, "mlp_only_layers": []},
        **{"model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": True},
        **{"num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8},
        **{"num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False},
        **{"rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0},
        **{"router_aux_loss_coef": 0.001, "sliding_window": None, "vocab_size": 151936},
        **{"tie_word_embeddings": False, "use_sliding_window": False},
    },
    "gemma-3-1b": {
        **{"architectures": ["Gemma3ForCausalLM"], "attention_bias": False},
        **{"attn_logit_softcapping": None, "cache_implementation": "hybrid"},
        **{"final_logit_softcapping": None, "head_dim": 256, "hidden_size": 1152},
        **{"hidden_activation": "gelu_pytorch_tanh", "intermediate_size": 6912},
        **{"max_position_embeddings": 32768, "model_type": "gemma3_text"},
        **{"num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1},
        **{"query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_scaling": None},
        **{"rope_local_base_freq": 10000, "rope_theta": 1000000, "sliding_window": 512},
        **{"sliding_window_pattern": 6, "vocab_size": 262144},
    },
    "deepseek-v3-671b": {
        **{"architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False},
        **{"auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "ep_size": 1},
        **{"first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168},
        **{"intermediate_size": 18432, "kv_lora_rank": 512, "model_type": "deepseek_v3"},
        **{"max_position_embeddings": 163840, "moe_intermediate_size": 2048},
        **{"moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1},
        **{"norm_topk_prob": True, "num_attention_heads": 128, "num_experts_per_tok": 8},
        **{"num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1},
        **{"q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64},
        "quantization_config": {"fmt": "e4m3", "weight_block_size": [128, 128]},
        **{"rms_norm_eps": 1e-06, "rope_theta": 10000, "routed_scaling_factor": 2.5},
        "rope_scaling": {
            **{"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0},
            **{"mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"},
        },
        **{"scoring_func": "sigmoid", "tie_word_embeddings": False, "topk_group": 4},
        **{"topk_method": "noaux_tc", "v_head_dim": 128, "vocab_size": 129280},
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_whole_published_files_are_read(name):
    assert read_config(PUBLISHED[name]) == size(name)
    assert read_config(write_config(size(name))) == size(name)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"type": "linear", "factor": 4.0}, RopeScaling("linear", 4.0)),
        (
            {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5},
            RopeScaling("yarn", 4.0, original_length=32_768, attention_factor=1.5),
        ),
        (
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000},
            RopeScaling("yarn", 4.0, original_length=1000),
        ),
    ],
)
def test_rotary_fields_are_read_in_both_spellings(scaling, expected):
    plain = PUBLISHED["qwen2.5-0.5b"]
    old = read_config(plain | {"rope_scaling": scaling})
    new = {k: v for k, v in plain.items() if k != "rope_theta"}
    kind = {"rope_type": scaling.get("type", scaling.get("rope_type")), "rope_theta": 1e6}
    new = read_config(new | {"rope_parameters": scaling | kind})
    assert old == new == dataclasses.replace(read_config(plain), rope_scaling=expected)
    assert read_config(write_config(old)) == old


def test_gemmas_layers_and_bases_are_read_in_both_spellings():
    old = PUBLISHED["gemma-3-1b"]
    gone = ("rope_local_base_freq", "rope_theta", "rope_scaling", "sliding_window_pattern")
    new = {k: v for k, v in old.items() if k not in gone} | {
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 4
        + ["sliding_attention"] * 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    }
    c = read_config(new)
    assert c == read_config(old)
    assert c.windows[:7] == (512,) * 5 + (0, 512) and c.rope_local_theta == 1e4
    assert c.tied and c.norm_offset and c.query_scale == 256**-0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "unknown architecture 'GPT2LMHeadModel'; valid:"),
        ({"hidden_size": None}, "no field 'hidden_size', which Qwen2ForCausalLM needs"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
            "rope_type='longrope' is not supported; valid: default, linear, llama3, yarn",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
            "rope truncate=False is not supported",
        ),
        ({"num_attention_heads": 13}, "model.heads=13 is not divisible by model.kv_heads=2"),
    ],
)
def test_what_is_missing_or_unknown_is_named_in_one_line(fields, message):
    hf = {k: v for k, v in (PUBLISHED["qwen2.5-0.5b"] | fields).items() if v is not None}
    with pytest.raises(ValueError) as error:
        read_config(hf)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"topk_method": "noaux_tc"}, "topk_method='noaux_tc' is not supported"),
        ({"moe_layer_freq": 2}, "moe_layer_freq=2 is not supported"),
    ],
)
def test_what_a_deepseek_may_not_be_is_named(fields, message):
    with pytest.raises(ValueError) as error:
        read_config(SIZES["deepseek-v2-lite"] | fields)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "family"),
    [
        ({}, "llama"),
        ({"qkv_bias": True, "tied": True}, "qwen2"),
        ({"qkv_bias": True, "out_bias": True}, "llama"),
        ({"windows": (4, 4)}, "mistral"),
        ({"qk_norm": True, "windows": (0, 4)}, "qwen3"),
        ({"qk_norm": True, "experts": Experts(4, 2, 8, dense=(0,))}, "qwen3_moe"),
    ],
)
def test_a_model_of_ours_gets_the_family_that_is_like_it(fields, family):
    c = dataclasses.replace(TINY, scan_layers=True, dtype="bfloat16", **fields)
    written = write_config(c)
    assert written["model_type"] == family
    assert read_config(written) == architecture(c)


@pytest.mark.parametrize(
    "fields",
    [
        {"attention_softcap": 5.0},
        {"windows": (3, 4)},
        {"latent": Latent(8, 0, 4, 4, 4), "qk_norm": True},
        {"experts": Experts(4, 2, 8), "tied": True, "qkv_bias": True},
    ],
)
def test_a_model_that_no_family_is_like_is_refused(fields):
    with pytest.raises(ValueError, match="no family of Transformers has this mixture"):
        write_config(dataclasses.replace(TINY, **fields))
