"""Qwen 2: biases of queries, keys and values; windows from some layer on."""

from grpo_jax.files import Json
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.families.base import (
    Family,
    layer_types,
    read_grouped,
    windows,
    write_grouped,
)


def read_qwen2(hf: Json) -> Json:
    """Fields of ModelConfig that are Qwen 2's own."""
    found: tuple[int, ...] = ()
    if hf.get("use_sliding_window") and hf.get("sliding_window"):
        first = hf.get("max_window_layers", 28)
        default = ["full_attention"] * first + ["sliding_attention"] * hf["num_hidden_layers"]
        found = windows(hf, (hf.get("layer_types") or default)[: hf["num_hidden_layers"]])
    return read_grouped(hf) | {"windows": found}


def write_qwen2(c: ModelConfig) -> Json:
    """Fields of config.json that are Qwen 2's own."""
    window = max(c.windows, default=0)
    fields = {"use_sliding_window": window > 0, "sliding_window": window or None}
    return write_grouped(c) | fields | ({"layer_types": layer_types(c)} if window else {})


FAMILY = Family(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    read=read_qwen2,
    write=write_qwen2,
    fixed={"qkv_bias": True},
)
