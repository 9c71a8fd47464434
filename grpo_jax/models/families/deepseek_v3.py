"""DeepSeek-V3 (2412.19437): sigmoid routing without a loss, and multi-token prediction."""

from grpo_jax.files import Json
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.families.base import EMBEDDING, HEAD, Family
from grpo_jax.models.families.deepseek_v2 import (
    LATENT_LAYER,
    read_deepseek,
    write_deepseek,
)

# The multi-token prediction layer.
DRAFT = {
    "embed_norm/scale": "enorm.weight",
    "hidden_norm/scale": "hnorm.weight",
    "join/kernel": "eh_proj.weight",
    "norm/scale": "shared_head.norm.weight",
}


def read_deepseek_v3(hf: Json) -> Json:
    """Fields of ModelConfig that are DeepSeek-V3's own."""
    fields = read_deepseek(hf)
    fields["experts"] |= {
        "groups": hf.get("n_group") or 1,
        "top_groups": hf.get("topk_group") or 1,
        "group_score": "top2",
        "score": "sigmoid",
        "bias": True,
    }
    mtp = hf.get("num_nextn_predict_layers") or 0
    return fields | {"mtp": mtp, "rope_interleaved": hf.get("rope_interleave", True)}


def write_deepseek_v3(c: ModelConfig) -> Json:
    """Fields of config.json that are DeepSeek-V3's own."""
    return write_deepseek(c) | {
        "n_group": c.experts.groups,
        "topk_group": c.experts.top_groups,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "rope_interleave": c.rope_interleaved,
        "num_nextn_predict_layers": c.mtp,
    }


FAMILY = Family(
    architecture="DeepseekV3ForCausalLM",
    model_type="deepseek_v3",
    read=read_deepseek_v3,
    write=write_deepseek_v3,
    layer=LATENT_LAYER | {"ff/router_bias": "mlp.gate.e_score_correction_bias"},
    draft=DRAFT,
    copies={"embed_tokens.weight": EMBEDDING, "shared_head.head.weight": HEAD},
)
