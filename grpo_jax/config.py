"""Every field of an experiment with its default, and the rules between fields."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict, config_dict

from grpo_jax.models.config import DTYPES, PARTS, REMAT_POLICIES, ModelConfig, model_config
from grpo_jax.models.config_json import CHOSEN, CHOSEN_EXPERTS, read_config_file

_CHOICES = {
    "overlong_prompts": ("refuse", "drop"),
    "model.dtype": DTYPES,
    "model.param_dtype": DTYPES,
    "model.remat": REMAT_POLICIES,
    "optimizer.schedule": ("constant", "cosine", "linear"),
}
# Smallest value allowed; the other numbers must be at least 0.
_AT_LEAST_ONE = (
    *("prompt_length", "reward_workers", "model.layers", "model.hidden", "model.heads"),
    *("model.kv_heads", "model.ff", "rollout.prompts", "rollout.group", "rollout.max_tokens"),
    *("rollout.prompt_bucket", "optimizer.max_bad_steps", "optimizer.accumulation"),
    *("sft.batch", "sft.check_every", "sft.check_problems", "eval.problems", "checkpoint.keep"),
    *("mesh.data", "mesh.fsdp", "mesh.tensor"),
)
_ABOVE_ZERO = (
    *("reward_timeout", "model.rope_theta", "model.norm_eps", "rollout.temperature"),
    *(
        "rollout.top_p",
        "eval.temperature",
        "eval.top_p",
        "optimizer.eps",
        "optimizer.max_grad_norm",
    ),
)
_AT_MOST_ONE = (
    *("rollout.top_p", "rollout.min_p", "optimizer.end_factor", "sft.stop_accuracy", "eval.top_p"),
)
_BELOW_ONE = ("optimizer.b1", "optimizer.b2")
# Fields whose keys or values are not ours to judge: tasks, rewards and algorithms judge them.
_FREE = ("task", "rewards", "algorithm")


class UsageError(ValueError):
    """Bad input; the message is one line for the user and needs no traceback."""


def defaults() -> ConfigDict:
    """Return every field with its default; a field of `algorithm` that is None is the preset's.

    The result is locked, so that a config file cannot invent a field; `task` and `rewards` take
    new keys: the task's own options, and the weight of each reward by name. As None stands for
    the preset's value, what a preset limits is let free with a large number, such as 1e9.
    """
    config = ConfigDict(
        {
            "seed": 0,
            "start": "",  # a run's folder, whose newest parameters this one starts from
            "steps": 60,  # of reinforcement learning
            "task": {"name": "addition"},
            "prompt_length": 32,  # tokens
            "overlong_prompts": "refuse",  # or 'drop'
            "tokenizer": "char",  # or a Hugging Face directory
            "rewards": {"accuracy": 1.0, "format": 0.1},
            "reward_workers": 2,  # processes
            "reward_timeout": 5.0,  # seconds for one completion
            "compilation_cache": "~/.cache/grpo_jax",  # '' = none
            **_model_and_rollout(),
            **_learning(),
        }
    )
    config.algorithm = ConfigDict(
        {"preset": "grpo", **{k: config_dict.placeholder(t) for k, t in algorithm_fields().items()}}
    )
    config.lock()
    config.task.unlock()
    config.rewards.unlock()
    return config


def _model_and_rollout() -> dict[str, Any]:
    return {
        "model": {
            "path": "",  # a Hugging Face directory, which then says all but how to compute
            "vocab_size": 0,  # 0 = the tokenizer's
            **model_fields(),  # see models.config.ModelConfig
        },
        "rollout": {
            "prompts": 32,  # P, a step
            "group": 8,  # G
            "max_tokens": 64,  # T
            "temperature": 1.0,
            "top_k": 0,  # 0 = off
            "top_p": 1.0,
            "min_p": 0.0,
            "speculative": False,  # the model's multi-token prediction layer drafts
            "prompt_bucket": 16,  # prompts are padded to a multiple of this
        },
    }


def model_fields() -> dict[str, Any]:
    """Every field of ModelConfig but the vocabulary's size, with its default, nested."""
    fields = {f.name: f.default for f in dataclasses.fields(ModelConfig) if f.name != "vocab_size"}
    nested: Any = dataclasses.asdict
    return {k: nested(v) if k in PARTS else v for k, v in fields.items()}


def _learning() -> dict[str, Any]:
    return {
        "optimizer": {
            "learning_rate": 2e-4,
            "critic_learning_rate": 0.0,  # of PPO's critic; 0 = the same
            "schedule": "constant",  # or 'cosine', 'linear'
            "warmup_steps": 0,
            "end_factor": 0.0,  # last learning rate / learning_rate
            "weight_decay": 0.0,
            "b1": 0.9,
            "b2": 0.95,
            "eps": 1e-8,
            "max_grad_norm": 1.0,
            "max_bad_steps": 5,  # non-finite gradients in a row before giving up
            "accumulation": 1,  # micro-batches a minibatch
        },
        "sft": {
            "steps": 0,  # 0 = no supervised fine-tuning first
            "batch": 64,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "examples": 0,  # worked solutions; 0 = all
            "stop_accuracy": 0.0,  # ends early at this accuracy on training problems; 0 = never
            "check_every": 5,  # steps between its checks
            "check_problems": 256,
        },
        "eval": {
            "every": 20,  # steps; 0 = never
            "problems": 512,
            "samples": 0,  # k of pass@k and maj@k; 0 = greedy only
            "temperature": 1.0,  # of the samples; DeepSeek-R1's were 0.6, and top_p 0.95
            "top_p": 1.0,
        },
        "checkpoint": {"every": 20, "keep": 2},  # steps, 0 = at the end only
        "log": {"samples": 4},  # completions shown and stored a step
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
    }


def algorithm_fields() -> dict[str, type]:
    """Return the name and the type (None stripped) of every field of `algorithms.Algorithm`."""
    from grpo_jax import algorithms  # imports JAX; --help must not

    hints = typing.get_type_hints(algorithms.Algorithm)
    return {f.name: _plain_type(hints[f.name]) for f in dataclasses.fields(algorithms.Algorithm)}


def _plain_type(hint: Any) -> type:
    kinds = [a for a in typing.get_args(hint) if a is not type(None)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _plain_type(kinds[0]) if len(kinds) == 1 else object
    if typing.get_origin(hint) is typing.Literal:
        return type(kinds[0])
    return typing.get_origin(hint) or hint


def resolve(config: ConfigDict | FrozenConfigDict) -> FrozenConfigDict:
    """Return the frozen, checked config: the preset's values filled in, then the overrides.

    Resolving twice changes nothing. Raises UsageError as `check` does.
    """
    from grpo_jax import algorithms

    plain = config.to_dict()
    preset = plain["algorithm"].pop("preset")
    if preset not in algorithms.PRESETS:
        names = ", ".join(sorted(algorithms.PRESETS))
        near = closest(str(preset), algorithms.PRESETS)
        raise UsageError(
            f"config.algorithm.preset: unknown {preset!r}; the closest is {near!r}, of {names}"
        )
    overrides = {k: v for k, v in plain["algorithm"].items() if v is not None}
    algorithm = dataclasses.replace(algorithms.PRESETS[preset], **overrides)
    plain["algorithm"] = {"preset": preset, **dataclasses.asdict(algorithm)}
    model = plain["model"]
    if model["path"]:
        _fill_model(model)
        if plain["tokenizer"] == "char":
            plain["tokenizer"] = model["path"]
    if not model["head_dim"] and model["heads"] and model["hidden"] % model["heads"] == 0:
        model["head_dim"] = model["hidden"] // model["heads"]
    check(plain)
    return FrozenConfigDict(plain)


def _fill_model(model: dict[str, Any]) -> None:
    """Put into `model` the architecture of its directory; UsageError where a field says another."""
    path = Path(model["path"]).expanduser()
    try:
        found = flatten(dataclasses.asdict(read_config_file(path)))
    except (OSError, ValueError) as error:
        raise UsageError(f"config.model.path: {error}") from error
    chosen = (*CHOSEN, *(f"experts.{name}" for name in CHOSEN_EXPERTS))
    default = flatten({"vocab_size": 0, **model_fields()})
    for name, value in found.items():
        if name in chosen or name.split(".")[0] in chosen:
            continue
        given, *groups = flatten(model)[name], *name.split(".")
        if _untupled(given) not in (_untupled(default[name]), _untupled(value)):
            raise UsageError(
                f"config.model.{name}={given!r}: {path / 'config.json'} says {value!r}; "
                "leave it out, as the directory says what the model is"
            )
        part = model
        for group in groups[:-1]:
            part = part[group]
        part[groups[-1]] = value


def check(config: dict[str, Any]) -> None:
    """Refuse impossible values of a resolved config, given as nested dicts.

    Raises UsageError naming the first bad field, its value and what would be valid.
    """
    values = flatten(config)
    _check_values(values)
    _check_rewards(config["rewards"])
    _check_model(config["model"])
    _check_adapters(config)
    _check_batch(config)


def _check_values(values: dict[str, Any]) -> None:
    known = flatten(defaults().to_dict())
    for name, value in values.items():
        free = name.split(".")[0] in _FREE
        if name not in known and not free:
            raise UsageError(unknown_field(name, known))
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"config.{name}: {value} is not a finite number")
        if free:
            continue
        if type(value) is not type(known[name]):
            raise UsageError(wrong_type(name, value, type(known[name])))
        if name in _CHOICES and value not in _CHOICES[name]:
            raise UsageError(_unknown_choice(name, value, _CHOICES[name]))
        if isinstance(value, int | float):
            _check_bounds(name, value)


def _check_bounds(name: str, value: float) -> None:
    rules = (
        (value >= 0, True, "at least 0"),
        (value >= 1, name in _AT_LEAST_ONE, "at least 1"),
        (value > 0, name in _ABOVE_ZERO, "above 0"),
        (value <= 1, name in _AT_MOST_ONE, "at most 1"),
        (value < 1, name in _BELOW_ONE, "below 1"),
    )
    for holds, applies, wanted in rules:
        if applies and not holds:
            raise UsageError(f"config.{name}: {value} must be {wanted}")


def _check_rewards(weights: dict[str, Any]) -> None:
    if not weights:
        raise UsageError("config.rewards: at least one reward and its weight are needed")
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise UsageError(f"config.rewards.{name}: {weight!r} is not a number")


def _check_model(model: dict[str, Any]) -> None:
    if not model["head_dim"]:
        raise UsageError(
            f"config.model.hidden: {model['hidden']} is not divisible by config.model.heads"
            f"={model['heads']}; choose a multiple, or set config.model.head_dim"
        )
    if model["head_dim"] % 2:
        raise UsageError(
            f"config.model.head_dim: {model['head_dim']} must be even: rotary embeddings turn pairs"
        )
    _divides("model.heads", model["heads"], "model.kv_heads", model["kv_heads"])
    fields = {k: v for k, v in model.items() if k != "path"}
    try:
        model_config(fields | {"vocab_size": model["vocab_size"] or 1})
    except ValueError as error:
        raise UsageError(f"config.{error}") from error


def _check_adapters(config: dict[str, Any]) -> None:
    if not config["model"]["lora"]["rank"]:
        return
    if not config["model"]["path"]:
        raise UsageError("config.model.lora.rank: adapters need the model of config.model.path")
    if config["model"]["lora"]["base"] != "none" and max(config["mesh"].values()) > 1:
        raise UsageError("config.model.lora.base: a quantized base lies on one device; valid: none")
    if config["algorithm"]["reference_refresh"]:
        raise UsageError(
            "config.algorithm.reference_refresh: with config.model.lora.rank the reference is the "
            "model without adapters, and stays; valid: 0"
        )


def _check_batch(config: dict[str, Any]) -> None:
    from grpo_jax import algorithms

    fields = {k: v for k, v in config["algorithm"].items() if k != "preset"}
    algorithm = algorithms.Algorithm(**fields)
    try:
        algorithms.validate(algorithm, config["rollout"]["group"])
    except ValueError as error:
        raise UsageError(f"config.algorithm: {error}") from error
    if algorithm.advantage == "process":
        raise UsageError(
            f"config.algorithm.advantage='process' (preset {config['algorithm']['preset']!r}) "
            "needs rewards of single steps, which the trainer does not have"
        )
    rollout, mesh = config["rollout"], config["mesh"]
    devices = mesh["data"] * mesh["fsdp"]
    _divides("rollout.prompts", rollout["prompts"], "algorithm.minibatches", algorithm.minibatches)
    groups, parts = rollout["prompts"] // algorithm.minibatches, config["optimizer"]["accumulation"]
    if parts > groups and devices == 1:  # micro-batches smaller than a group
        name = "optimizer.accumulation * algorithm.minibatches / rollout.prompts"
        _divides("optimizer.accumulation", parts, "prompts a minibatch", groups)
        _divides("rollout.group", rollout["group"], name, parts // groups)
    else:
        name = "algorithm.minibatches * optimizer.accumulation * mesh.data * mesh.fsdp"
        total = algorithm.minibatches * parts * devices
        _divides("rollout.prompts", rollout["prompts"], name, total)
    if config["sft"]["steps"]:
        _divides("sft.batch", config["sft"]["batch"], "mesh.data * mesh.fsdp", devices)


def _divides(name: str, value: int, by: str, divisor: int) -> None:
    if value % divisor:
        raise UsageError(f"config.{name}: {value} is not divisible by {by} = {divisor}")


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"a.b": value} for nested dicts {"a": {"b": value}}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def completed(saved: dict[str, Any]) -> dict[str, Any]:
    """A run's saved config, with the fields that came since at their defaults."""
    base = defaults()
    base.algorithm.preset = saved["algorithm"]["preset"]
    whole, known = {**saved}, flatten(saved)
    for name, value in flatten(resolve(base).to_dict()).items():
        if name not in known and name.split(".")[0] not in ("task", "rewards"):
            *groups, leaf = name.split(".")
            part = whole
            for group in groups:
                part[group] = {**part.get(group, {})}
                part = part[group]
            part[leaf] = value
    return whole


def config_diff(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return one 'field: old -> new' for each dotted field whose value differs."""
    before, after = flatten(old), flatten(new)
    fields = list(dict.fromkeys([*before, *after]))
    listed = [{k: _untupled(d[k]) for k in fields if k in d} for d in (before, after)]
    shown = [{k: repr(v) for k, v in d.items()} for d in listed]
    return [
        f"{k}: {shown[0].get(k, '(absent)')} -> {shown[1].get(k, '(absent)')}"
        for k in fields
        if shown[0].get(k) != shown[1].get(k)
    ]


def _untupled(value: Any) -> Any:
    # JSON has no tuples: a config read back from a file must equal the one that was written.
    return [_untupled(v) for v in value] if isinstance(value, list | tuple) else value


def closest(name: str, valid: Iterable[str]) -> str:
    """Return the member of `valid` most like the dotted `name`; of equals the first.

    The last part counts double. A `name` of one part is compared with each: a user who writes
    'learning_rate' most likely left out the group that it is in.
    """

    def alike(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a, b).ratio()

    def likeness(other: str) -> float:
        leaf, *groups = reversed(other.split("."))
        if "." in name:
            return 2 * alike(name.split(".")[-1], leaf) + alike(name, other)
        # A group's own name may have been meant: its first field tells of it.
        return max(alike(name, leaf), *[0.99 * alike(name, group) for group in groups], 0.0)

    fields = list(valid)
    parents = [field for field in fields if name.startswith(f"{field}.")]
    return parents[0] if parents else max(fields, key=likeness)


def unknown_field(name: str, valid: Iterable[str]) -> str:
    """Say that no field is called `name`, and which one of `valid` may have been meant."""
    return f"unknown field config.{name}; the closest valid one is config.{closest(name, valid)}"


def _unknown_choice(name: str, value: Any, valid: Sequence[str]) -> str:
    return f"config.{name}: unknown value {value!r}; valid: {', '.join(valid)}"


def wrong_type(name: str, value: Any, kind: type) -> str:
    """Say that `value` does not fit the field `name`."""
    return f"config.{name}: {value!r} is not of type {kind.__name__}"
