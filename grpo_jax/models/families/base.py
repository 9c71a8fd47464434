"""What a family of models is, and what several share: no JAX.

A new one is a file here, and a line in FAMILIES.
"""

import dataclasses
from collections.abc import Callable, Mapping

from grpo_jax.files import Json
from grpo_jax.models.config import ModelConfig

EMBEDDING, HEAD = "embed/embedding", "head"
# Ours -> theirs. Within a layer, "{e}" runs over experts, whose matrices lie transposed.
WHOLE = {
    EMBEDDING: "model.embed_tokens.weight",
    "norm/scale": "model.norm.weight",
    HEAD: "lm_head.weight",
    "score": "score.weight",  # of a reward model
}
LAYER = {
    "attention_norm/scale": "input_layernorm.weight",
    "ff_norm/scale": "post_attention_layernorm.weight",
    **{
        f"attention/{name}/{ours}": f"self_attn.{name}_proj.{theirs}"
        for name in "qkvo"
        for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
    },
    "attention/q_norm/scale": "self_attn.q_norm.weight",
    "attention/k_norm/scale": "self_attn.k_norm.weight",
    **{f"ff/{name}/kernel": f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
    **{f"ff/{name}": f"mlp.experts.{{e}}.{name}_proj.weight" for name in ("gate", "up", "down")},
    "ff/router": "mlp.gate.weight",
}
CAUSAL, SCORING = "ForCausalLM", "ForSequenceClassification"  # how architectures end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture of Transformers.

    architecture, model_type   as in config.json
    read    config.json -> the family's own fields of ModelConfig
    write   ModelConfig -> the family's own fields of config.json
    fixed   fields of ModelConfig that the family implies

    Names of tensors, ours -> theirs:
    layer   within a layer
    whole   of what is no layer's; what stands here and in `layer` is for all that a family may have
    layers  what precedes those of layer {i}
    draft   within the multi-token prediction layer, which is numbered after the last one; {} = the
            family has none
    copies  within it, tensors that repeat one of `whole`: theirs -> ours

    Flags:
    scoring     the architecture of its reward models; "" = as the others are called
    activation  the field of config.json that names it
    tied        whether the head is the embedding where config.json does not say
    local_rope  whether layers with a window have other rotary frequencies
    """

    architecture: str
    model_type: str
    read: Callable[[Json], Json]
    write: Callable[[ModelConfig], Json]
    fixed: Json = dataclasses.field(default_factory=dict)
    layer: Mapping[str, str] = dataclasses.field(default_factory=lambda: LAYER)
    whole: Mapping[str, str] = dataclasses.field(default_factory=lambda: WHOLE)
    layers: str = "model.layers.{i}."
    draft: Mapping[str, str] = dataclasses.field(default_factory=dict)
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scoring: str = ""
    activation: str = "hidden_act"
    tied: bool = False
    local_rope: bool = False

    @property
    def reward_model(self) -> str:
        """The architecture of its reward models."""
        return self.scoring or self.architecture.replace(CAUSAL, SCORING)

    def prefix(self, layer: int) -> str:
        """What the names of a layer's tensors begin with."""
        return self.layers.format(i=layer)


def read_grouped(hf: Json) -> Json:
    """Heads that share keys and values (2305.13245)."""
    heads = hf["num_attention_heads"]
    return {
        "kv_heads": hf.get("num_key_value_heads") or heads,
        "head_dim": hf.get("head_dim") or hf["hidden_size"] // heads,
    }


def write_grouped(c: ModelConfig) -> Json:
    """The same, back."""
    return {"num_key_value_heads": c.kv_heads, "head_dim": c.head_dim}


def windows(hf: Json, kinds: list[str]) -> tuple[int, ...]:
    """Each layer's window, of the kinds of layers; () where none has any."""
    found = tuple(hf["sliding_window"] if k == "sliding_attention" else 0 for k in kinds)
    return found if any(found) else ()


def layer_types(c: ModelConfig) -> list[str]:
    """The same, back."""
    return ["sliding_attention" if c.window(i) else "full_attention" for i in range(c.layers)]
