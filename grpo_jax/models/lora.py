"""Low-rank adapters (LoRA, 2106.09685): merged into the weights, or written as PEFT keeps them."""

import json
from pathlib import Path

import flax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from grpo_jax.files import METADATA, replacing
from grpo_jax.hosts import fetch
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.config_json import family_in
from grpo_jax.models.names import parts
from grpo_jax.models.quantized import dense
from grpo_jax.types import Params

ADAPTERS = ("lora_a", "lora_b")
PEFT_NAMES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}


def merge_adapters(c: ModelConfig, params: Params) -> Params:
    """Parameters without adapters, none quantized: adapted kernels become W + alpha / rank B A."""
    flat = flax.traverse_util.flatten_dict(params)
    scale = c.lora.alpha / c.lora.rank if c.lora.rank else 0.0
    whole = {}
    for path, leaf in flat.items():
        if path[-1] in ADAPTERS:
            continue
        a, b = (flat.get((*path[:-1], name)) for name in ADAPTERS)
        if path[-1] == "kernel" and a is not None:
            delta = scale * jnp.matmul(b, a, preferred_element_type=jnp.float32)
            leaf = (dense(leaf) + delta).astype(c.param_dtype)
        whole[path] = dense(leaf)
    return flax.traverse_util.unflatten_dict(whole)


def save_adapters(out: Path, c: ModelConfig, params: Params, base: str) -> None:
    """Write the adapters among `params` as PEFT's directory, whole or not at all.

    base  the directory or name that PEFT's config gives the model under them
    """
    tensors: dict[str, np.ndarray] = {}
    modules, family = set(), family_in(Path(base), c)
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        if path[-1] not in ADAPTERS:
            continue
        for part in parts(family, c, (*path[:-1], "kernel")):
            module = part.name.removesuffix(".weight")
            modules.add(module)
            tensor = np.ascontiguousarray(fetch(leaf[part.at] if part.at else leaf))
            tensors[f"base_model.model.{module}.{PEFT_NAMES[path[-1]]}"] = tensor
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": c.lora.rank,
        "lora_alpha": c.lora.alpha,
        "target_modules": sorted(modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    with replacing(out, Path(base)) as made:
        (made / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(tensors, made / "adapter_model.safetensors", metadata=METADATA)
