"""Published checkpoints by name, as their config.json has them: for planning without weights.

No JAX. `jax.eval_shape` of such a model's `init` counts its parameters and costs no memory.
"""

from typing import Any

from grpo_jax.errors import nearest
from grpo_jax.files import Json
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.config_json import read_config

Rows = dict[str, tuple[int, ...]]
WIDTHS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads"),
)


def _family(model_type: str, vocab: int, rows: Rows, **shared: Any) -> dict[str, Json]:
    """{name: config.json} of checkpoints that differ only in WIDTHS."""
    fields = {"model_type": model_type, "vocab_size": vocab, "rms_norm_eps": 1e-6} | shared
    return {name: fields | dict(zip(WIDTHS, row, strict=True)) for name, row in rows.items()}


def _qwen2(vocab: int, rows: Rows, tied: bool, theta: float = 1e6) -> dict[str, Json]:
    return _family("qwen2", vocab, rows, tie_word_embeddings=tied, rope_theta=theta)


def _qwen3(rows: Rows, tied: bool) -> dict[str, Json]:
    options: Json = {"head_dim": 128, "rope_theta": 1e6, "tie_word_embeddings": tied}
    return _family("qwen3", 151_936, rows, **options)


def _qwen3_moe(name: str, row: tuple[int, ...], width: int) -> dict[str, Json]:
    experts = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": width}
    options = {"head_dim": 128, "rope_theta": 1e6, "norm_topk_prob": True}
    return _family("qwen3_moe", 151_936, {name: row}, **experts, **options)


def _llama3(rows: Rows, factor: float, tied: bool) -> dict[str, Json]:
    rope = {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": 8192}
    scaling = {"rope_scaling": rope | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}}
    options = {"rms_norm_eps": 1e-5, "rope_theta": 5e5, "tie_word_embeddings": tied}
    return _family("llama", 128_256, rows, **options, **scaling)


def _smollm2(rows: Rows, theta: float) -> dict[str, Json]:
    options = {"rms_norm_eps": 1e-5, "rope_theta": theta, "tie_word_embeddings": True}
    return _family("llama", 49_152, rows, **options)


def _gemma3(rows: Rows) -> dict[str, Json]:
    options = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 512}
    ropes = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6}
    return _family("gemma3_text", 262_144, rows, **options, **ropes)


def _deepseek(model_type: str, vocab: int, row: tuple[int, ...], mscale: float) -> Json:
    yarn = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
    return {
        **_family(model_type, vocab, {"": row}, rope_theta=1e4)[""],
        "rope_scaling": yarn | {"mscale": mscale, "mscale_all_dim": mscale},
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    }


SIZES: dict[str, Json] = {
    **_qwen2(
        151_936,
        {
            "qwen2.5-0.5b": (896, 4864, 24, 14, 2),
            "qwen2.5-1.5b": (1536, 8960, 28, 12, 2),
            "qwen2.5-3b": (2048, 11_008, 36, 16, 2),
        },
        tied=True,
    ),
    **_qwen2(
        152_064,
        {
            "qwen2.5-7b": (3584, 18_944, 28, 28, 4),
            "qwen2.5-14b": (5120, 13_824, 48, 40, 8),
            "qwen2.5-32b": (5120, 27_648, 64, 40, 8),
            "qwen2.5-72b": (8192, 29_568, 80, 64, 8),
        },
        tied=False,
    ),
    **_qwen2(151_936, {"qwen2.5-math-1.5b": (1536, 8960, 28, 12, 2)}, tied=True, theta=1e4),
    **_qwen2(
        151_936, {"deepseek-r1-distill-qwen-1.5b": (1536, 8960, 28, 12, 2)}, tied=False, theta=1e4
    ),
    **_qwen2(
        152_064, {"deepseek-r1-distill-qwen-7b": (3584, 18_944, 28, 28, 4)}, tied=False, theta=1e4
    ),
    **_qwen3(
        {
            "qwen3-0.6b": (1024, 3072, 28, 16, 8),
            "qwen3-1.7b": (2048, 6144, 28, 16, 8),
            "qwen3-4b": (2560, 9728, 36, 32, 8),
        },
        tied=True,
    ),
    **_qwen3(
        {
            "qwen3-8b": (4096, 12_288, 36, 32, 8),
            "qwen3-14b": (5120, 17_408, 40, 40, 8),
            "qwen3-32b": (5120, 25_600, 64, 64, 8),
        },
        tied=False,
    ),
    **_qwen3_moe("qwen3-30b-a3b", (2048, 6144, 48, 32, 4), 768),
    **_qwen3_moe("qwen3-235b-a22b", (4096, 12_288, 94, 64, 4), 1536),
    **_llama3(
        {"llama-3.2-1b": (2048, 8192, 16, 32, 8), "llama-3.2-3b": (3072, 8192, 28, 24, 8)},
        factor=32.0,
        tied=True,
    ),
    **_llama3(
        {"llama-3.1-8b": (4096, 14_336, 32, 32, 8), "llama-3.1-70b": (8192, 28_672, 80, 64, 8)},
        factor=8.0,
        tied=False,
    ),
    **_smollm2(
        {"smollm2-135m": (576, 1536, 30, 9, 3), "smollm2-360m": (960, 2560, 32, 15, 5)}, 1e5
    ),
    **_smollm2({"smollm2-1.7b": (2048, 8192, 24, 32, 32)}, 1.3e5),
    **_family("mistral", 32_768, {"mistral-7b": (4096, 14_336, 32, 32, 8)}, rope_theta=1e6),
    **_gemma3({"gemma-3-270m": (640, 2048, 18, 4, 1), "gemma-3-1b": (1152, 6912, 26, 4, 1)}),
    "deepseek-v2-lite": {
        **_deepseek("deepseek_v2", 102_400, (2048, 10_944, 27, 16, 16), mscale=0.707),
        "q_lora_rank": None,
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1408,
        "first_k_dense_replace": 1,
        "topk_method": "greedy",
    },
    "deepseek-v2-236b": {
        **_deepseek("deepseek_v2", 102_400, (5120, 12_288, 60, 128, 128), mscale=0.707),
        "q_lora_rank": 1536,
        "n_routed_experts": 160,
        "num_experts_per_tok": 6,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1536,
        "first_k_dense_replace": 1,
        "topk_method": "group_limited_greedy",
        "n_group": 8,
        "topk_group": 3,
        "routed_scaling_factor": 16.0,
    },
    "deepseek-v3-671b": {
        **_deepseek("deepseek_v3", 129_280, (7168, 18_432, 61, 128, 128), mscale=1.0),
        "q_lora_rank": 1536,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "moe_intermediate_size": 2048,
        "first_k_dense_replace": 3,
        "n_group": 8,
        "topk_group": 4,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": 1,
    },
}


def size(name: str) -> ModelConfig:
    """The ModelConfig of a published checkpoint; ValueError names the nearest there is."""
    if name not in SIZES:
        near = nearest(name.lower(), SIZES)
        raise ValueError(f"unknown model size {name!r}; nearest valid: {near!r}")
    return read_config(SIZES[name])
