"""Llama, and what is laid out like it."""

from grpo_jax.files import Json
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.families.base import Family, read_grouped, write_grouped


def read_llama(hf: Json) -> Json:
    """Fields of ModelConfig that are Llama's own."""
    bias = bool(hf.get("attention_bias"))
    return read_grouped(hf) | {"qkv_bias": bias, "out_bias": bias}


def write_llama(c: ModelConfig) -> Json:
    """Fields of config.json that are Llama's own."""
    return write_grouped(c) | {"attention_bias": c.qkv_bias, "mlp_bias": False}


FAMILY = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    read=read_llama,
    write=write_llama,
)
