"""Qwen 3: norms of queries and keys."""

from grpo_jax.files import Json
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.families.base import Family
from grpo_jax.models.families.qwen2 import read_qwen2, write_qwen2


def read_qwen3(hf: Json) -> Json:
    """Fields of ModelConfig that are Qwen 3's own."""
    bias = bool(hf.get("attention_bias"))
    return read_qwen2(hf) | {"qkv_bias": bias, "out_bias": bias}


def write_qwen3(c: ModelConfig) -> Json:
    """Fields of config.json that are Qwen 3's own."""
    return write_qwen2(c) | {"attention_bias": c.qkv_bias}


FAMILY = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    read=read_qwen3,
    write=write_qwen3,
    fixed={"qk_norm": True},
)
