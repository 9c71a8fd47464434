"""Gemma 3, text only: norms after attention and feed-forward too, windows, soft caps."""

from grpo_jax.files import Json
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.families.base import (
    LAYER,
    Family,
    layer_types,
    read_grouped,
    windows,
    write_grouped,
)

POST_NORMS = {
    "attention_post_norm/scale": "post_attention_layernorm.weight",
    "ff_norm/scale": "pre_feedforward_layernorm.weight",
    "ff_post_norm/scale": "post_feedforward_layernorm.weight",
}


def read_gemma3(hf: Json) -> Json:
    """Fields of ModelConfig that are Gemma 3's own."""
    pattern, n = hf.get("sliding_window_pattern", 6), hf["num_hidden_layers"]
    default = [
        "full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(n)
    ]
    return read_grouped(hf) | {
        "windows": windows(hf, hf.get("layer_types") or default),
        "query_scale": hf.get("query_pre_attn_scalar", 256) ** -0.5,
        "attention_softcap": hf.get("attn_logit_softcapping") or 0.0,
        "logit_softcap": hf.get("final_logit_softcapping") or 0.0,
    }


def write_gemma3(c: ModelConfig) -> Json:
    """Fields of config.json that are Gemma 3's own."""
    scalar = round((c.query_scale or c.head_dim**-0.5) ** -2, 6)
    return write_grouped(c) | {
        "sliding_window": max(c.windows, default=0) or 4096,
        "layer_types": layer_types(c),
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "attn_logit_softcapping": c.attention_softcap or None,
        "final_logit_softcapping": c.logit_softcap or None,
        "attention_bias": False,
    }


FAMILY = Family(
    architecture="Gemma3ForCausalLM",
    model_type="gemma3_text",
    read=read_gemma3,
    write=write_gemma3,
    fixed={
        "qk_norm": True,
        "norm_offset": True,
        "post_norms": True,
        "scale_embedding": True,
        "activation": "gelu",
    },
    layer=LAYER | POST_NORMS,
    scoring="Gemma3TextForSequenceClassification",
    activation="hidden_activation",
    tied=True,
    local_rope=True,
)
