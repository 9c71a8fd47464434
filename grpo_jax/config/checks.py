"""The rules that a config must keep, and how an error names the field that breaks one."""

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from grpo_jax.errors import UsageError, nearest
from grpo_jax.files import Json
from grpo_jax.models.config import DTYPES, REMAT_POLICIES, model_config
from grpo_jax.tokenizers.chat import RENDERED

_CHOICES = {
    "overlong_prompts": ("refuse", "drop"),
    "model.dtype": DTYPES,
    "model.param_dtype": DTYPES,
    "model.remat": REMAT_POLICIES,
    "optimizer.schedule": ("constant", "cosine", "linear"),
}
# Smallest value allowed; the other numbers must be at least 0.
_AT_LEAST_ONE = (
    *("prompt_length", "model.layers", "model.hidden", "model.heads"),
    *("model.kv_heads", "model.ff", "rollout.prompts", "rollout.group", "rollout.max_tokens"),
    *("rollout.prompt_bucket", "optimizer.max_bad_steps", "optimizer.accumulation"),
    *("sft.batch", "sft.check_every", "sft.check_problems", "eval.problems", "checkpoint.keep"),
    *("mesh.data", "mesh.fsdp", "mesh.tensor", "log.samples_every"),
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
# Far above what anyone trains, and below what would take a machine down before it is refused.
_AT_MOST = {
    **{"model.layers": 10_000, "model.hidden": 2**20, "model.ff": 2**22, "model.heads": 2**16},
    **{"model.head_dim": 2**16, "model.vocab_size": 2**26, "model.lora.rank": 2**16},
    **{"reward_workers": 4096, "eval.samples": 2**16},
}
_BELOW_ONE = ("optimizer.b1", "optimizer.b2")
# Counts and sizes are int32 where they are used, and numbers float32, whose least normal one is
# what a processor that flushes smaller ones to zero can distinguish from zero; JAX's keys are of 32
# bits.
INT_MAX, SEED_MAX = 2**31 - 1, 2**32 - 1
FLOAT_MAX, FLOAT_MIN = 3.4028235e38, 1.17549435e-38
_LARGEST_WEIGHT = 1e18  # its square is within float32
# Fields whose keys or values are not checked here: tasks, rewards and algorithms check them.
_FREE = ("task", "rewards", "algorithm", "chat_template_kwargs")


def check(config: Json, known: Json) -> None:
    """Refuse impossible values of a resolved config, nested dicts; `known` are its defaults.

    Raises UsageError naming the first bad field, its value and what would be valid.
    """
    values = flatten(config)
    _check_values(values, flatten(known))
    _check_rewards(config["rewards"], config["task"])
    check_chat(config["chat_template_kwargs"])
    check_stop(config["rollout"]["stop"])
    _check_model(config["model"])
    _check_adapters(config)
    _check_batch(config)
    _check_log(config["log"])


def _check_values(values: Json, known: Json) -> None:
    for name, value in values.items():
        free = name.split(".")[0] in _FREE
        if name not in known and not free:
            raise UsageError(unknown_field(name, known))
        _check_size(name, value)
        if free:
            continue
        if type(value) is not type(known[name]):
            raise UsageError(wrong_type(name, value, type(known[name])))
        if name in _CHOICES and value not in _CHOICES[name]:
            raise UsageError(_unknown_choice(name, value, _CHOICES[name]))
        if isinstance(value, int | float):
            _check_bounds(name, value)


def _check_size(name: str, value: Any) -> None:
    """Refuse numbers that do not fit where they are used; a task's may be as long as a list."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"config.{name}: {value} is not a finite number")
    if isinstance(value, float) and abs(value) > FLOAT_MAX:
        raise UsageError(f"config.{name}: {value} must be at most {FLOAT_MAX}, as float32 is")
    if name == "seed" and isinstance(value, int) and not 0 <= value <= SEED_MAX:
        raise UsageError(f"config.seed: {value}; valid: 0 to {SEED_MAX}")
    of_task = name.startswith("task.")
    limit = sys.maxsize if of_task else SEED_MAX if name == "seed" else INT_MAX
    if isinstance(value, int) and abs(value) > limit and not (of_task and name.endswith("seed")):
        raise UsageError(f"config.{name}: {value} must be at most {limit}")


def _check_bounds(name: str, value: float) -> None:
    rules = (
        (value >= 0, True, "at least 0"),
        (value >= 1, name in _AT_LEAST_ONE, "at least 1"),
        (value > 0, name in _ABOVE_ZERO, "above 0"),
        (value >= FLOAT_MIN, name in _ABOVE_ZERO, f"at least {FLOAT_MIN}, as float32 is"),
        (value <= 1, name in _AT_MOST_ONE, "at most 1"),
        (value <= _AT_MOST.get(name, value), True, f"at most {_AT_MOST.get(name)}"),
        (value < 1, name in _BELOW_ONE, "below 1"),
    )
    for holds, applies, wanted in rules:
        if applies and not holds:
            raise UsageError(f"config.{name}: {value} must be {wanted}")


def _check_rewards(weights: Json, task: Json) -> None:
    if not weights:
        raise UsageError("config.rewards: at least one reward and its weight are needed")
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise UsageError(f"config.rewards.{name}: {weight!r} is not a number")
        if abs(weight) > _LARGEST_WEIGHT:
            raise UsageError(f"config.rewards.{name}: {weight!r} is too large; valid: up to 1e18")
    parts = task.get("parts", {})
    for kind, options in parts.items() if isinstance(parts, dict) else ():
        names = options.get("rewards", ()) if isinstance(options, dict) else ()
        if isinstance(names, str):
            raise UsageError(
                f"config.task.parts.{kind}.rewards={names!r}: valid: a tuple of names, ({names!r},)"
            )
        for name in names:
            if name not in weights:
                raise UsageError(
                    f"config.task.parts.{kind}.rewards: {name!r} is not among config.rewards; "
                    f"valid: {', '.join(weights)}"
                )


def check_chat(given: Json, name: str = "config.chat_template_kwargs") -> None:
    """Refuse arguments that a chat template does not take from the user; UsageError names them."""
    for key in given:
        if key in RENDERED:
            raise UsageError(
                f"{name}: {key!r} is set by rendering; valid: what the chat template itself reads, "
                "such as enable_thinking"
            )


def check_stop(strings: Sequence[object], name: str = "config.rollout.stop") -> None:
    """Refuse what cannot stop a completion; UsageError names it."""
    for string in strings:
        if not isinstance(string, str) or not string or _is_torn(string):
            raise UsageError(f"{name}: {string!r}; valid: texts of whole characters, not empty")


def _is_torn(text: str) -> bool:
    """Whether some of a text is half a character, which no decoded text holds."""
    return "\ufffd" in text or text != text.encode(errors="ignore").decode()


def _check_model(model: Json) -> None:
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


def _check_adapters(config: Json) -> None:
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


def _check_batch(config: Json) -> None:
    from grpo_jax import algorithms

    fields = {k: v for k, v in config["algorithm"].items() if k != "preset"}
    algorithm = algorithms.Algorithm(**fields)
    try:
        algorithms.validate(algorithm, config["rollout"]["group"])
    except ValueError as error:
        raise UsageError(f"config.algorithm: {error}") from error
    updates = config["steps"] * algorithm.inner_epochs * algorithm.minibatches
    if updates > INT_MAX:
        raise UsageError(
            f"config.steps: {config['steps']} times algorithm.inner_epochs and "
            f"algorithm.minibatches are {updates} updates; valid: at most {INT_MAX}"
        )
    rollout, mesh = config["rollout"], config["mesh"]
    tokens = rollout["prompts"] * rollout["group"] * rollout["max_tokens"]
    if tokens > INT_MAX:
        raise UsageError(
            f"config.rollout.prompts * group * max_tokens: {tokens} tokens a step; valid: at most "
            f"{INT_MAX}"
        )
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


def _check_log(log: Json) -> None:
    names, steps = log["trackers"], log["profile_steps"]
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise UsageError(f"config.log.trackers: {names!r}; valid: names, each once")
    whole = all(isinstance(step, int) and not isinstance(step, bool) for step in steps)
    if steps and not (whole and len(steps) == 2 and 1 <= steps[0] <= steps[1]):
        raise UsageError(
            f"config.log.profile_steps: {steps!r}; valid: the first and the last step, such as "
            "(10, 12), or ()"
        )


def _divides(name: str, value: int, by: str, divisor: int) -> None:
    if value % divisor:
        raise UsageError(f"config.{name}: {value} is not divisible by {by} = {divisor}")


def flatten(config: Json, prefix: str = "") -> Json:
    """Return {"a.b": value} for nested dicts {"a": {"b": value}}."""
    flat: Json = {}
    for key, value in config.items():
        nested = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def config_diff(old: Json, new: Json) -> list[str]:
    """Return one 'field: old -> new' for each dotted field whose value differs."""
    before, after = flatten(old), flatten(new)
    fields = list(dict.fromkeys([*before, *after]))
    listed = [{k: untupled(d[k]) for k in fields if k in d} for d in (before, after)]
    shown = [{k: repr(v) for k, v in d.items()} for d in listed]
    return [
        f"{k}: {shown[0].get(k, '(absent)')} -> {shown[1].get(k, '(absent)')}"
        for k in fields
        if shown[0].get(k) != shown[1].get(k)
    ]


def untupled(value: object) -> object:
    """`value` as JSON has it, without tuples, so that a config read back equals the written one."""
    return [untupled(v) for v in value] if isinstance(value, list | tuple) else value


def unknown_field(name: str, valid: Iterable[str]) -> str:
    """Say that no field is called `name`, and which one of `valid` may have been meant."""
    return f"unknown field config.{name}; the closest valid one is config.{nearest(name, valid)}"


def _unknown_choice(name: str, value: Any, valid: Sequence[str]) -> str:
    return f"config.{name}: unknown value {value!r}; valid: {', '.join(valid)}"


def wrong_type(name: str, value: object, kind: type) -> str:
    """Say that `value` does not fit the field `name`."""
    return f"config.{name}: {value!r} is not of type {kind.__name__}"
