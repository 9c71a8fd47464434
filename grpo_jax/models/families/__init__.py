"""Hugging Face's families of models by model_type, a file each. No JAX.

What all families share of config.json is in `config_json`, and of tensors in `names`.
"""

from grpo_jax.models.families import (
    deepseek_v2,
    deepseek_v3,
    gemma3,
    llama,
    mistral,
    qwen2,
    qwen3,
    qwen3_moe,
)
from grpo_jax.models.families.base import Family

FAMILIES: dict[str, Family] = {
    "llama": llama.FAMILY,
    "mistral": mistral.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
    "qwen3_moe": qwen3_moe.FAMILY,
    "gemma3_text": gemma3.FAMILY,
    "deepseek_v2": deepseek_v2.FAMILY,
    "deepseek_v3": deepseek_v3.FAMILY,
}
