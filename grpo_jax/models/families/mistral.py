"""Mistral: one window for all layers."""

from grpo_jax.files import Json
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.families.base import Family, read_grouped, write_grouped


def read_mistral(hf: Json) -> Json:
    """Fields of ModelConfig that are Mistral's own."""
    window = hf.get("sliding_window") or 0
    return read_grouped(hf) | {"windows": (window,) * hf["num_hidden_layers"] if window else ()}


def write_mistral(c: ModelConfig) -> Json:
    """Fields of config.json that are Mistral's own."""
    return write_grouped(c) | {"sliding_window": max(c.windows, default=0) or None}


FAMILY = Family(
    architecture="MistralForCausalLM",
    model_type="mistral",
    read=read_mistral,
    write=write_mistral,
)
