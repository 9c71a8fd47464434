"""Hugging Face's config.json to ModelConfig and back. No JAX."""

import dataclasses
from pathlib import Path
from typing import Any

from grpo_jax.files import Json, read_object
from grpo_jax.models.config import Experts, ModelConfig, RopeScaling, model_config
from grpo_jax.models.families import FAMILIES
from grpo_jax.models.families.base import CAUSAL, EMBEDDING, HEAD, SCORING, Family
from grpo_jax.models.files import INDEX, SINGLE, equal, tensor_files

# Ours -> theirs, for every family.
FIELDS = {
    "vocab_size": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ff": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}
ROPE_FIELDS = {
    "factor": "factor",
    "original_length": "original_max_position_embeddings",
    "low_frequency": "low_freq_factor",
    "high_frequency": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "attention_factor": "attention_factor",
}
ROPE_USES = {
    "none": (),
    "linear": ("factor",),
    "llama3": ("factor", "original_length", "low_frequency", "high_frequency"),
    "yarn": tuple(k for k in ROPE_FIELDS if not k.endswith("_frequency")),
}
# What Transformers refuses to do without.
ROPE_NEEDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}
# Fields that may say what no decoder of ours does.
VALID: dict[str, tuple[Any, ...]] = {
    "mlp_bias": (False,),
    "use_bidirectional_attention": (False,),
    "moe_layer_freq": (1,),
}
# What a user of a published model may still choose: how it is computed and trained.
CHOSEN = ("dtype", "param_dtype", "scan_layers", "remat", "lora", "mtp_weight")
CHOSEN_EXPERTS = ("bias_rate", "balance")


def read_config_file(directory: Path) -> ModelConfig:
    """The ModelConfig of a Hugging Face directory.

    The weights have the last word, as in Transformers: a multi-token prediction layer that they
    lack (Transformers drops it when it saves) is left out, and a head that they hold is tied to the
    embedding only where both are equal. FileNotFoundError without a config.json; ValueError names
    the file and the field at fault.
    """
    file = directory / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; valid: a Hugging Face model directory")
    hf = read_object(file)
    try:
        c = read_config(hf)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error
    if not any((directory / name).is_file() for name in (INDEX, SINGLE)):
        return c
    files, family = tensor_files(directory), family_named(hf)
    if c.mtp and not any(name.startswith(family.prefix(c.layers)) for name in files):
        c = dataclasses.replace(c, mtp=0)
    both = family.whole[EMBEDDING], family.whole[HEAD]
    if c.tied and not _scores(hf) and {*both} <= files.keys():
        c = dataclasses.replace(c, tied=equal(directory, files, *both))
    return c


def read_config(hf: Json) -> ModelConfig:
    """The ModelConfig of a config.json; ValueError names what is unknown, missing or refused."""
    if not isinstance(hf, dict):
        raise ValueError("not a JSON object")
    family = family_named(hf)
    _check_supported(family, hf)
    try:
        own = family.read(hf)
        shared = {ours: hf[theirs] for ours, theirs in FIELDS.items()}
        fields = shared | _read_rope(hf, family) | family.fixed | own
    except KeyError as error:
        raise ValueError(
            f"no field {error.args[0]!r}, which {family.architecture} needs"
        ) from error
    tied = hf.get("tie_word_embeddings", family.tied)
    fields["tied"] = bool(tied) or _scores(hf)  # a model that scores has no head for tokens
    return model_config(fields)


def write_config(c: ModelConfig, like: str = "") -> Json:
    """The config.json of a ModelConfig; ValueError where no family is like it.

    like  the model_type to be written if it fits, where several do
    """
    for family in sorted(FAMILIES.values(), key=lambda family: family.model_type != like):
        hf = _written(family, c)
        try:
            if architecture(read_config(hf)) == architecture(c):
                return hf
        except ValueError:  # what this family cannot express
            continue
    raise ValueError(
        "no family of Transformers has this mixture of options; "
        f"valid: those of {', '.join(f.architecture for f in FAMILIES.values())}"
    )


def family_in(directory: Path, c: ModelConfig) -> Family:
    """The family of a Hugging Face directory; of a config, the first that fits, without one."""
    file = directory / "config.json"
    return family_named(read_object(file) if file.is_file() else write_config(c))


def _written(family: Family, c: ModelConfig) -> Json:
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{theirs: getattr(c, ours) for ours, theirs in FIELDS.items()},
        family.activation: {v: k for k, v in ACTIVATIONS.items()}[c.activation],
        "tie_word_embeddings": c.tied,
        **_write_rope(c),
        **family.write(c),
    }


def architecture(c: ModelConfig) -> ModelConfig:
    """The config without what a user may choose: how the model is computed and trained."""
    defaults: Json = {
        f.name: f.default for f in dataclasses.fields(ModelConfig) if f.name in CHOSEN
    }
    rates: Json = {
        f.name: f.default for f in dataclasses.fields(Experts) if f.name in CHOSEN_EXPERTS
    }
    experts = dataclasses.replace(c.experts, **rates)
    return dataclasses.replace(c, **defaults, experts=experts if experts.count else Experts())


def is_scoring(directory: Path) -> bool:
    """Whether a directory holds a Hugging Face model ForSequenceClassification."""
    file = directory / "config.json"
    return file.is_file() and _scores(read_object(file))


def as_scoring(hf: Json, pad: int | None) -> Json:
    """The config.json of a model with one label in place of a head for tokens.

    pad  what Transformers looks for the last token before; None where that ends completions too:
         it then scores rows one by one
    """
    name = family_named(hf).reward_model
    return hf | {"architectures": [name], "id2label": {"0": "LABEL_0"}, "pad_token_id": pad}


def _scores(hf: Json) -> bool:
    return any(name.endswith(SCORING) for name in hf.get("architectures") or [])


def family_named(hf: Json) -> Family:
    """The family of a config.json; ValueError for an unknown architecture."""
    named = hf.get("architectures") or []
    for family in FAMILIES.values():
        if any(name.replace(SCORING, CAUSAL) == family.architecture for name in named):
            return family
        if family.reward_model in named:
            return family
        if not named and hf.get("model_type") == family.model_type:
            return family
    found = ", ".join(name.replace(SCORING, CAUSAL) for name in named) or hf.get("model_type")
    valid = ", ".join(f.architecture for f in FAMILIES.values())
    raise ValueError(f"unknown architecture {found!r}; valid: {valid}")


def _check_supported(family: Family, hf: Json) -> None:
    activation = (
        hf.get(family.activation)
        or {v: k for k, v in ACTIVATIONS.items()}[family.fixed.get("activation", "silu")]
    )
    wanted = family.fixed.get("activation", "silu")
    if ACTIVATIONS.get(activation) != wanted:
        raise ValueError(f"{family.activation}={activation!r} is not supported")
    for name, valid in VALID.items():
        if hf.get(name) not in (None, *valid):
            raise ValueError(f"{name}={hf[name]!r} is not supported")
    rope = hf.get("rope_parameters") or {}
    factor = rope.get("partial_rotary_factor", hf.get("partial_rotary_factor")) or 1.0
    if factor != 1.0:
        raise ValueError(f"partial_rotary_factor={factor} is not supported")


def _read_rope(hf: Json, family: Family) -> Json:
    """Rotary fields, of `rope_parameters` (Transformers 5) or `rope_theta` and `rope_scaling`.

    Where both are there, `rope_scaling` holds, as in Transformers.
    """
    new, old = (_object(hf, name) for name in ("rope_parameters", "rope_scaling"))
    # Without the length that was stretched, it is the longest that the model takes.
    longest = {"original_max_position_embeddings": hf.get("max_position_embeddings")}
    if family.local_rope or "full_attention" in new:
        local, full = (_object(new, f"{kind}_attention") for kind in ("sliding", "full"))
        if _rope_kind(local) != "none":
            raise ValueError(f"sliding_attention with rope_type={_rope_kind(local)!r}")
        base = {"rope_theta": hf.get("rope_local_base_freq", 10_000.0)}
        theta = _number(base | local, "rope_theta")
        return {"rope_local_theta": theta} | _read_one_rope(longest | full | old, hf, 1_000_000.0)
    top = {k: hf[k] for k in longest if hf.get(k) is not None}
    return _read_one_rope(longest | (old or new) | top, hf, 10_000.0)


def _object(hf: Json, name: str) -> Json:
    value = hf.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{name}={value!r}; valid: a JSON object")
    return value


def _rope_kind(rope: Json) -> str:
    kind = rope.get("rope_type", rope.get("type", "default"))
    return "none" if kind == "default" else str(kind)


def _read_one_rope(rope: Json, hf: Json, theta: float) -> Json:
    kind = _rope_kind(rope)
    if kind not in ROPE_USES:
        valid = ", ".join(("default", *list(ROPE_USES)[1:]))
        raise ValueError(f"rope_type={kind!r} is not supported; valid: {valid}")
    if not rope.get("truncate", True):
        raise ValueError("rope truncate=False is not supported")
    base = _number({"rope_theta": hf.get("rope_theta", theta)} | rope, "rope_theta")
    lacking = [name for name in ROPE_NEEDS[kind] if name not in rope]
    if lacking:
        raise ValueError(f"rope_type={kind!r} needs {lacking[0]!r}, which is missing")
    if kind == "yarn" and rope["factor"] is None:
        lengths = ("max_position_embeddings", "original_max_position_embeddings")
        longest, original = (_number(hf | rope, name) for name in lengths)
        rope = rope | {"factor": longest / original}
    given = {ours: ROPE_FIELDS[ours] for ours in ROPE_USES[kind]}
    optional = set(given.values()) - set(ROPE_NEEDS[kind])
    read = {
        ours: _number(rope, theirs)
        for ours, theirs in given.items()
        if theirs not in optional or rope.get(theirs)  # null and 0 are none there
    }
    chosen: Json = {k: int(v) if k == "original_length" else v for k, v in read.items()}
    return {"rope_theta": base, "rope_scaling": RopeScaling(kind, **chosen)}


def _number(rope: Json, name: str) -> float:
    value = rope.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}={value!r}; valid: a number")
    return float(value)


def _write_rope(c: ModelConfig) -> Json:
    s = c.rope_scaling
    values = {ROPE_FIELDS[ours]: getattr(s, ours) for ours in ROPE_USES[s.kind]}
    kept = {k: v for k, v in values.items() if v != 0.0}
    rope = {"rope_type": "default" if s.kind == "none" else s.kind, "rope_theta": c.rope_theta}
    rope |= kept
    if not c.rope_local_theta:
        return {"rope_parameters": rope}
    local = {"rope_type": "default", "rope_theta": c.rope_local_theta}
    return {"rope_parameters": {"full_attention": rope, "sliding_attention": local}}
