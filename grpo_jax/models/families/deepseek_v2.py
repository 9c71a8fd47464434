"""DeepSeek-V2 (2405.04434): multi-head latent attention and shared experts."""

from grpo_jax.files import Json
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.families.base import LAYER, Family

LATENT_FIELDS = {
    "kv_rank": "kv_lora_rank",
    "q_rank": "q_lora_rank",
    "nope_dim": "qk_nope_head_dim",
    "rope_dim": "qk_rope_head_dim",
    "v_dim": "v_head_dim",
}
LATENT_LAYER = LAYER | {
    "attention/q_a/kernel": "self_attn.q_a_proj.weight",
    "attention/q_a/bias": "self_attn.q_a_proj.bias",
    "attention/q_a_norm/scale": "self_attn.q_a_layernorm.weight",
    "attention/q_b/kernel": "self_attn.q_b_proj.weight",
    "attention/kv_a/kernel": "self_attn.kv_a_proj_with_mqa.weight",
    "attention/kv_a/bias": "self_attn.kv_a_proj_with_mqa.bias",
    "attention/kv_a_norm/scale": "self_attn.kv_a_layernorm.weight",
    "attention/kv_b/kernel": "self_attn.kv_b_proj.weight",
    **{
        f"ff/shared/{name}/kernel": f"mlp.shared_experts.{name}_proj.weight"
        for name in ("gate", "up", "down")
    },
}


def read_deepseek(hf: Json) -> Json:
    """What DeepSeek-V2 and V3 share."""
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


def write_deepseek(c: ModelConfig) -> Json:
    """The same, back."""
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


def read_deepseek_v2(hf: Json) -> Json:
    """Fields of ModelConfig that are DeepSeek-V2's own."""
    fields, method = read_deepseek(hf), hf.get("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise ValueError(f"topk_method={method!r} is not supported")
    if method == "group_limited_greedy":
        groups = {"groups": hf["n_group"], "top_groups": hf["topk_group"]}
        fields["experts"] |= groups | {"group_score": "max"}
    return fields


def write_deepseek_v2(c: ModelConfig) -> Json:
    """Fields of config.json that are DeepSeek-V2's own."""
    grouped, e = c.experts.groups > 1, c.experts
    return write_deepseek(c) | {
        "topk_method": "group_limited_greedy" if grouped else "greedy",
        "n_group": e.groups if grouped else None,
        "topk_group": e.top_groups if grouped else None,
    }


FAMILY = Family(
    architecture="DeepseekV2ForCausalLM",
    model_type="deepseek_v2",
    read=read_deepseek_v2,
    write=write_deepseek_v2,
    fixed={"rope_interleaved": True},
    layer=LATENT_LAYER,
)
