"""Tiny models of every family with random weights, made by Transformers: an independent source."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from reference import boxed_params

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.config_json import read_config_file
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.weights import load_weights
from grpo_jax.sharding import shardings, unbox

V = 61
BASE = {
    **{"vocab_size": V, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
DEEPSEEK = BASE | {
    **{"num_key_value_heads": 4, "kv_lora_rank": 16, "qk_nope_head_dim": 8},
    **{"qk_rope_head_dim": 4, "v_head_dim": 6, "moe_intermediate_size": 24},
    **{"num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    **{"n_routed_experts": 8, "num_mtp_layers": 0},
}
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 5e2, "factor": 8.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 16},
}
YARN = {
    **{"rope_type": "yarn", "rope_theta": 1e3, "factor": 4.0},
    "original_max_position_embeddings": 64,
}
DEEPSEEK_YARN = {
    **{"rope_type": "yarn", "rope_theta": 100.0, "factor": 40.0, "mscale": 1.0},
    **{"mscale_all_dim": 0.8, "original_max_position_embeddings": 16},
    **{"beta_fast": 32, "beta_slow": 1},
}
GEMMA = {
    **{"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 12},
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 2e3, "factor": 2.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
    "final_logit_softcapping": 20.0,
}
# Windows are narrower than the texts, groups of experts fewer than all, scalings in force.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", BASE | {"rope_parameters": LLAMA3}),
    "llama_bias": ("Llama", BASE | {"attention_bias": True, "tie_word_embeddings": True}),
    "mistral": ("Mistral", BASE | {"sliding_window": 6, "head_dim": 10}),
    "qwen2": ("Qwen2", BASE),
    "qwen2_window": (
        "Qwen2",
        BASE
        | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
        | {"rope_parameters": YARN},
    ),
    "qwen3": ("Qwen3", BASE | {"head_dim": 12}),
    "qwen3_moe": (
        "Qwen3Moe",
        BASE
        | {"head_dim": 12, "num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": True}
        | {"moe_intermediate_size": 16, "mlp_only_layers": [1]},
    ),
    "gemma3": ("Gemma3Text", BASE | GEMMA),
    "deepseek_v2": ("DeepseekV2", DEEPSEEK | {"q_lora_rank": None, "topk_method": "greedy"}),
    "deepseek_v2_groups": (
        "DeepseekV2",
        DEEPSEEK
        | {"q_lora_rank": 20, "topk_method": "group_limited_greedy", "n_group": 4}
        | {"topk_group": 2, "routed_scaling_factor": 2.0, "rope_parameters": DEEPSEEK_YARN},
    ),
    "deepseek_v3": (
        "DeepseekV3",
        DEEPSEEK
        | {"q_lora_rank": 20, "n_group": 4, "topk_group": 2, "rope_parameters": DEEPSEEK_YARN},
    ),
}


class Tiny(NamedTuple):
    """A model in float32 and the folder it is saved in."""

    folder: Path
    model: Any


def make(name: str, folder: Path) -> Tiny:
    """The model of CASES[name]: no norm's scale is 1, no bias 0, and no logit tiny."""
    import torch
    import transformers

    torch.set_num_threads(1)  # such small products only wait for each other
    transformers.utils.logging.disable_progress_bar()
    family, fields = CASES[name]
    config = getattr(transformers, f"{family}Config")(**fields)
    rng = np.random.default_rng(list(CASES).index(name))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for path, x in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in path or path.endswith("embed_scale"):
                continue
            spread = 0.3 if x.ndim < 2 else 1.5 / x.shape[-1] ** 0.5
            centre = 1.0 if "norm" in path and family != "Gemma3Text" else 0.0
            if path == "model.norm.weight" and config.tie_word_embeddings:
                spread = 2.0  # of both signs, or a token predicts itself for ever
            x.copy_(torch.tensor(centre + spread * rng.normal(size=x.shape)))
    model.eval().save_pretrained(folder)
    return Tiny(folder, model)


def load(folder: Path, **changes: Any) -> tuple[ModelConfig, Any]:
    """The same model as ours reads it, with `changes` of its config."""
    c = dataclasses.replace(read_config_file(folder), **changes)
    return c, load_weights(folder, c, abstract(c))


def abstract(c: ModelConfig, mesh: Any = None) -> Any:
    """The parameters' shapes and where they go: one device, or a mesh."""
    boxed = boxed_params(c)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = unbox(boxed)
    places = shardings(boxed, mesh) if mesh else jax.tree.map(lambda _: one, shapes)
    make = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(make, shapes, places)


def read_json(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def their_logits(model: Any, tokens: np.ndarray, mask: np.ndarray | None = None) -> Any:
    """Logits [N, L, V] of left-padded rows, as a torch tensor with gradients."""
    import torch

    mask = np.ones(tokens.shape, bool) if mask is None else mask
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    return model(
        input_ids=torch.tensor(tokens, dtype=torch.long),
        attention_mask=torch.tensor(mask, dtype=torch.long),
        position_ids=torch.tensor(positions, dtype=torch.long),
    ).logits


def their_gradients(model: Any) -> dict[str, np.ndarray]:
    """Gradients by the names of the checkpoint, where experts' matrices are separate."""
    out = {}
    for path, x in model.named_parameters():
        gradient = x.grad.numpy()
        if path.endswith("experts.gate_up_proj"):
            for e, both in enumerate(gradient):
                for name, half in zip(("gate", "up"), np.split(both, 2), strict=True):
                    out[path.replace("gate_up_proj", f"{e}.{name}_proj.weight")] = half
        elif path.endswith("experts.down_proj"):
            for e, matrix in enumerate(gradient):
                out[path.replace("down_proj", f"{e}.down_proj.weight")] = matrix
        else:
            out[path] = gradient
    return out


def our_logits(c: ModelConfig, params: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits [N, L, V] of whole rows."""
    return np.asarray(_logits(Decoder(c), params, tokens))


def _forward(model: Decoder, params: Any, tokens: Any) -> Any:
    positions = np.arange(tokens.shape[-1])[None, None]
    hidden, _ = model.apply({"params": params}, tokens[:, None], positions)
    return model.apply({"params": params}, hidden[:, 0], method=Decoder.logits)


_logits = jax.jit(_forward, static_argnums=0)
