"""Qwen 3 with experts."""

from grpo_jax.files import Json
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.families.base import Family
from grpo_jax.models.families.qwen3 import read_qwen3, write_qwen3


def read_qwen3_moe(hf: Json) -> Json:
    """Fields of ModelConfig that are Qwen 3's experts' own."""
    step, n = hf.get("decoder_sparse_step", 1), hf["num_hidden_layers"]
    kept = hf.get("mlp_only_layers") or []
    experts = {
        "count": hf.get("num_experts") or hf["num_local_experts"],
        "active": hf["num_experts_per_tok"],
        "ff": hf["moe_intermediate_size"],
        "normalise": bool(hf.get("norm_topk_prob")),
        "dense": tuple(i for i in range(n) if i in kept or (i + 1) % step),
    }
    return read_qwen3(hf) | {"experts": experts}


def write_qwen3_moe(c: ModelConfig) -> Json:
    """Fields of config.json that are Qwen 3's experts' own."""
    e = c.experts
    return write_qwen3(c) | {
        "num_experts": e.count,
        "num_experts_per_tok": e.active,
        "moe_intermediate_size": e.ff,
        "norm_topk_prob": e.normalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(e.dense),
    }


FAMILY = Family(
    architecture="Qwen3MoeForCausalLM",
    model_type="qwen3_moe",
    read=read_qwen3_moe,
    write=write_qwen3_moe,
    fixed={"qk_norm": True},
)
