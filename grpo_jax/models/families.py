"""Hugging Face's families of models: what each fixes, and how its own fields are read and written.

What all families share is in `config_json`. No JAX.
"""

import dataclasses
from collections.abc import Callable

from grpo_jax.files import Json
from grpo_jax.models.config import ModelConfig

LATENT_FIELDS = {
    "kv_rank": "kv_lora_rank",
    "q_rank": "q_lora_rank",
    "nope_dim": "qk_nope_head_dim",
    "rope_dim": "qk_rope_head_dim",
    "v_dim": "v_head_dim",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture of Transformers.

    architecture, model_type   as in config.json
    fixed   fields of ModelConfig that the family implies
    read    config.json -> the family's own fields of ModelConfig
    write   ModelConfig -> the family's own fields of config.json
    """

    architecture: str
    model_type: str
    fixed: Json
    read: Callable[[Json], Json]
    write: Callable[[ModelConfig], Json]


def _grouped(hf: Json) -> Json:
    heads = hf["num_attention_heads"]
    return {
        "kv_heads": hf.get("num_key_value_heads") or heads,
        "head_dim": hf.get("head_dim") or hf["hidden_size"] // heads,
    }


def _write_grouped(c: ModelConfig) -> Json:
    return {"num_key_value_heads": c.kv_heads, "head_dim": c.head_dim}


def _llama(hf: Json) -> Json:
    bias = bool(hf.get("attention_bias"))
    return _grouped(hf) | {"qkv_bias": bias, "out_bias": bias}


def _write_llama(c: ModelConfig) -> Json:
    return _write_grouped(c) | {"attention_bias": c.qkv_bias, "mlp_bias": False}


def _mistral(hf: Json) -> Json:
    window = hf.get("sliding_window") or 0
    return _grouped(hf) | {"windows": (window,) * hf["num_hidden_layers"] if window else ()}


def _write_mistral(c: ModelConfig) -> Json:
    return _write_grouped(c) | {"sliding_window": max(c.windows, default=0) or None}


def _qwen2(hf: Json) -> Json:
    windows: tuple[int, ...] = ()
    if hf.get("use_sliding_window") and hf.get("sliding_window"):
        first = hf.get("max_window_layers", 28)
        default = ["full_attention"] * first + ["sliding_attention"] * hf["num_hidden_layers"]
        windows = _windows(hf, (hf.get("layer_types") or default)[: hf["num_hidden_layers"]])
    return _grouped(hf) | {"windows": windows}


def _write_qwen2(c: ModelConfig) -> Json:
    window = max(c.windows, default=0)
    fields = {"use_sliding_window": window > 0, "sliding_window": window or None}
    return _write_grouped(c) | fields | ({"layer_types": _layer_types(c)} if window else {})


def _windows(hf: Json, kinds: list[str]) -> tuple[int, ...]:
    windows = tuple(hf["sliding_window"] if k == "sliding_attention" else 0 for k in kinds)
    return windows if any(windows) else ()


def _layer_types(c: ModelConfig) -> list[str]:
    return ["sliding_attention" if c.window(i) else "full_attention" for i in range(c.layers)]


def _qwen3(hf: Json) -> Json:
    bias = bool(hf.get("attention_bias"))
    return _qwen2(hf) | {"qkv_bias": bias, "out_bias": bias}


def _write_qwen3(c: ModelConfig) -> Json:
    return _write_qwen2(c) | {"attention_bias": c.qkv_bias}


def _qwen3_moe(hf: Json) -> Json:
    step, n = hf.get("decoder_sparse_step", 1), hf["num_hidden_layers"]
    kept = hf.get("mlp_only_layers") or []
    experts = {
        "count": hf.get("num_experts") or hf["num_local_experts"],
        "active": hf["num_experts_per_tok"],
        "ff": hf["moe_intermediate_size"],
        "normalise": bool(hf.get("norm_topk_prob")),
        "dense": tuple(i for i in range(n) if i in kept or (i + 1) % step),
    }
    return _qwen3(hf) | {"experts": experts}


def _write_qwen3_moe(c: ModelConfig) -> Json:
    e = c.experts
    return _write_qwen3(c) | {
        "num_experts": e.count,
        "num_experts_per_tok": e.active,
        "moe_intermediate_size": e.ff,
        "norm_topk_prob": e.normalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(e.dense),
    }


def _gemma3(hf: Json) -> Json:
    pattern, n = hf.get("sliding_window_pattern", 6), hf["num_hidden_layers"]
    default = [
        "full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(n)
    ]
    return _grouped(hf) | {
        "windows": _windows(hf, hf.get("layer_types") or default),
        "query_scale": hf.get("query_pre_attn_scalar", 256) ** -0.5,
        "attention_softcap": hf.get("attn_logit_softcapping") or 0.0,
        "logit_softcap": hf.get("final_logit_softcapping") or 0.0,
    }


def _write_gemma3(c: ModelConfig) -> Json:
    scalar = round((c.query_scale or c.head_dim**-0.5) ** -2, 6)
    return _write_grouped(c) | {
        "sliding_window": max(c.windows, default=0) or 4096,
        "layer_types": _layer_types(c),
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "attn_logit_softcapping": c.attention_softcap or None,
        "final_logit_softcapping": c.logit_softcap or None,
        "attention_bias": False,
    }


def _deepseek(hf: Json) -> Json:
    bias = bool(hf.get("attention_bias"))
    return {
        "kv_heads": hf["num_attention_heads"],
        "head_dim": hf["qk_rope_head_dim"],
        "qkv_bias": bias,
        "out_bias": bias,
        "latent": {ours: hf[theirs] or 0 for ours, theirs in LATENT_FIELDS.items()},
        "experts": {
            "count": hf.get("n_routed_experts") or 0,
            "active": hf.get("num_experts_per_tok") or 0,
            "ff": hf["moe_intermediate_size"],
            "shared": (hf.get("n_shared_experts") or 0) * hf["moe_intermediate_size"],
            "dense": tuple(range(hf.get("first_k_dense_replace") or 0)),
            "normalise": bool(hf.get("norm_topk_prob")),
            "scale": float(hf.get("routed_scaling_factor", 1.0)),
        },
    }


def _write_deepseek(c: ModelConfig) -> Json:
    e = c.experts
    written = {theirs: getattr(c.latent, ours) for ours, theirs in LATENT_FIELDS.items()}
    return written | {
        "q_lora_rank": c.latent.q_rank or None,
        "num_key_value_heads": c.heads,
        "attention_bias": c.qkv_bias,
        "n_routed_experts": e.count,
        "num_experts_per_tok": e.active,
        "moe_intermediate_size": e.ff,
        "n_shared_experts": e.shared // e.ff if e.ff else 0,
        "first_k_dense_replace": len(e.dense),
        "norm_topk_prob": e.normalise,
        "routed_scaling_factor": e.scale,
    }


def _deepseek_v2(hf: Json) -> Json:
    fields, method = _deepseek(hf), hf.get("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise ValueError(f"topk_method={method!r} is not supported")
    if method == "group_limited_greedy":
        groups = {"groups": hf["n_group"], "top_groups": hf["topk_group"]}
        fields["experts"] |= groups | {"group_score": "max"}
    return fields


def _write_deepseek_v2(c: ModelConfig) -> Json:
    grouped, e = c.experts.groups > 1, c.experts
    return _write_deepseek(c) | {
        "topk_method": "group_limited_greedy" if grouped else "greedy",
        "n_group": e.groups if grouped else None,
        "topk_group": e.top_groups if grouped else None,
    }


def _deepseek_v3(hf: Json) -> Json:
    fields = _deepseek(hf)
    fields["experts"] |= {
        "groups": hf.get("n_group") or 1,
        "top_groups": hf.get("topk_group") or 1,
        "group_score": "top2",
        "score": "sigmoid",
        "bias": True,
    }
    mtp = hf.get("num_nextn_predict_layers") or 0
    return fields | {"mtp": mtp, "rope_interleaved": hf.get("rope_interleave", True)}


def _write_deepseek_v3(c: ModelConfig) -> Json:
    return _write_deepseek(c) | {
        "n_group": c.experts.groups,
        "topk_group": c.experts.top_groups,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "rope_interleave": c.rope_interleaved,
        "num_nextn_predict_layers": c.mtp,
    }


GEMMA = {
    "qk_norm": True,
    "norm_offset": True,
    "post_norms": True,
    "scale_embedding": True,
    "activation": "gelu",
}
FAMILIES = tuple(
    Family(*row)
    for row in (
        ("LlamaForCausalLM", "llama", {}, _llama, _write_llama),
        ("MistralForCausalLM", "mistral", {}, _mistral, _write_mistral),
        ("Qwen2ForCausalLM", "qwen2", {"qkv_bias": True}, _qwen2, _write_qwen2),
        ("Qwen3ForCausalLM", "qwen3", {"qk_norm": True}, _qwen3, _write_qwen3),
        ("Qwen3MoeForCausalLM", "qwen3_moe", {"qk_norm": True}, _qwen3_moe, _write_qwen3_moe),
        ("Gemma3ForCausalLM", "gemma3_text", GEMMA, _gemma3, _write_gemma3),
        (
            *("DeepseekV2ForCausalLM", "deepseek_v2", {"rope_interleaved": True}),
            *(_deepseek_v2, _write_deepseek_v2),
        ),
        ("DeepseekV3ForCausalLM", "deepseek_v3", {}, _deepseek_v3, _write_deepseek_v3),
    )
)
