"""Which tensors of a Hugging Face checkpoint make up which parameter. No JAX."""

import itertools
from typing import NamedTuple

from grpo_jax.models.config import ModelConfig

Path = tuple[str, ...]

# Within a layer, ours -> theirs. "{e}" runs over experts, whose matrices lie transposed.
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
    "attention/q_a/kernel": "self_attn.q_a_proj.weight",
    "attention/q_a/bias": "self_attn.q_a_proj.bias",
    "attention/q_a_norm/scale": "self_attn.q_a_layernorm.weight",
    "attention/q_b/kernel": "self_attn.q_b_proj.weight",
    "attention/kv_a/kernel": "self_attn.kv_a_proj_with_mqa.weight",
    "attention/kv_a/bias": "self_attn.kv_a_proj_with_mqa.bias",
    "attention/kv_a_norm/scale": "self_attn.kv_a_layernorm.weight",
    "attention/kv_b/kernel": "self_attn.kv_b_proj.weight",
    **{f"ff/{name}/kernel": f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
    **{
        f"ff/shared/{name}/kernel": f"mlp.shared_experts.{name}_proj.weight"
        for name in ("gate", "up", "down")
    },
    **{f"ff/{name}": f"mlp.experts.{{e}}.{name}_proj.weight" for name in ("gate", "up", "down")},
    "ff/router": "mlp.gate.weight",
    "ff/router_bias": "mlp.gate.e_score_correction_bias",
}
# Gemma's names, where norms follow attention and feed-forward too.
POST_NORMS = {
    "attention_post_norm/scale": "post_attention_layernorm.weight",
    "ff_norm/scale": "pre_feedforward_layernorm.weight",
    "ff_post_norm/scale": "post_feedforward_layernorm.weight",
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WHOLE = {
    "embed/embedding": EMBEDDING,
    "norm/scale": "model.norm.weight",
    "head": HEAD,
    "score": "score.weight",  # of a reward model
}
# The multi-token prediction layer, which DeepSeek numbers after the last layer.
MTP = {
    "embed_norm/scale": "enorm.weight",
    "hidden_norm/scale": "hnorm.weight",
    "join/kernel": "eh_proj.weight",
    "norm/scale": "shared_head.norm.weight",
}
# Copies that such a layer's checkpoint holds of tensors it shares with the decoder.
MTP_COPIES = {
    "embed_tokens.weight": EMBEDDING,
    "shared_head.head.weight": HEAD,
}


class Part(NamedTuple):
    """A tensor `name` of the checkpoint is the parameter `at` this index of its leading axes."""

    name: str
    at: tuple[int, ...]
    transposed: bool


def parts(c: ModelConfig, path: Path) -> list[Part]:
    """The tensors that make up the parameter at `path`; KeyError where there are none."""
    first, rest = path[0], "/".join(path[1:])
    if "/".join(path) in WHOLE:
        return [Part(WHOLE["/".join(path)], (), False)]
    if first == "mtp":
        at = f"model.layers.{c.layers}."
        if path[1] == "layer":
            return _layer(c, "/".join(path[2:]), at, ())
        return [Part(at + MTP[rest], (), False)]
    if first.startswith("layer_"):
        return _layer(c, rest, f"model.layers.{first.removeprefix('layer_')}.", ())
    segment = next(s for s in c.segments() if s.name == first)
    layers = range(segment.start, segment.stop)
    each = (_layer(c, rest, f"model.layers.{i}.", (i - segment.start,)) for i in layers)
    return list(itertools.chain.from_iterable(each))


def _layer(c: ModelConfig, name: str, at: str, index: tuple[int, ...]) -> list[Part]:
    theirs = at + (LAYER | POST_NORMS if c.post_norms else LAYER)[name]
    if "{e}" not in theirs:
        return [Part(theirs, index, False)]
    return [Part(theirs.format(e=e), (*index, e), True) for e in range(c.experts.count)]


def copies(c: ModelConfig) -> dict[str, str]:
    """Tensors of a checkpoint that repeat another: name -> the tensor it repeats."""
    if not c.mtp:
        return {}
    shared = MTP_COPIES.items()
    return {f"model.layers.{c.layers}.{k}": v for k, v in shared if not (c.tied and "lm" in v)}
