"""Every field of an experiment with its default."""

import dataclasses
import types
import typing
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict, config_dict

from grpo_jax.config.checks import check, flatten, untupled
from grpo_jax.config.fields import Fields, FrozenFields
from grpo_jax.errors import UsageError, described, nearest
from grpo_jax.files import Json, at_home
from grpo_jax.models.config import PARTS, ModelConfig
from grpo_jax.models.config_json import CHOSEN, CHOSEN_EXPERTS, read_config_file


def defaults() -> ConfigDict:
    """Return every field with its default; a field of `algorithm` that is None is the preset's.

    The result is locked, so that a config file cannot invent a field; `task`, `rewards` and
    `chat_template_kwargs` take new keys: the task's own options, the weight of each reward by name,
    and what the chat template is given. As None stands for the preset's value, a large number such
    as 1e9 lifts a limit that a preset sets.
    """
    config = Fields(
        {
            "seed": 0,
            "start": "",  # a run's folder, whose newest parameters this one starts from
            "steps": 60,  # of reinforcement learning; each samples a batch and learns from it
            "task": {"name": "addition"},
            "prompt_length": 32,  # tokens
            "overlong_prompts": "refuse",  # or 'drop'
            "tokenizer": "char",  # or a Hugging Face directory
            "chat_template_kwargs": {},  # for its chat template, such as enable_thinking
            "rewards": {"accuracy": 1.0, "format": 0.1},
            "reward_workers": 0,  # processes; 0 = one a core
            "reward_timeout": 5.0,  # seconds for one completion, loading not among them
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
    config.chat_template_kwargs.unlock()
    return config


def _model_and_rollout() -> Json:
    return {
        "model": {
            "path": "",  # a Hugging Face directory, which then sets all but how to compute
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
            "stop": (),  # texts that end a completion and stay in it; evaluations' too
            "engine": "lockstep",  # or 'speculative': the multi-token prediction layer drafts
            "source": "in_turn",  # or 'overlapped': the next batch while this one is graded
            "environment": "single_turn",  # or an import path, as of the two above
            "prompt_bucket": 16,  # prompts are padded to a multiple of this
        },
    }


def model_fields() -> Json:
    """Every field of ModelConfig except the vocabulary's size, with its default, nested."""
    fields = {f.name: f.default for f in dataclasses.fields(ModelConfig) if f.name != "vocab_size"}
    nested: Any = dataclasses.asdict
    return {k: nested(v) if k in PARTS else v for k, v in fields.items()}


def _learning() -> Json:
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
            "accumulation": 1,  # micro-batches a minibatch; of sft.batch, those that divide it
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
        "log": {
            "trackers": ("console", "jsonl", "tensorboard"),  # names, or "package.module:Tracker"
            "samples": 4,  # completions shown and stored
            "samples_every": 1,  # steps between them
            "profile_steps": (),  # the first and the last step that JAX's profiler traces
        },
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
        near = nearest(str(preset), algorithms.PRESETS)
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
    check(plain, defaults().to_dict())
    return FrozenFields(plain)


def _fill_model(model: Json) -> None:
    """Put into `model` the architecture of its directory; UsageError where a field says another."""
    path = at_home(model["path"])
    try:
        found = flatten(dataclasses.asdict(read_config_file(path)))
    except OSError as error:
        raise UsageError(f"config.model.path: {described(error)}") from error
    except ValueError as error:
        raise UsageError(f"config.model.path: {error}") from error
    chosen = (*CHOSEN, *(f"experts.{name}" for name in CHOSEN_EXPERTS))
    default = flatten({"vocab_size": 0, **model_fields()})
    for name, value in found.items():
        if name in chosen or name.split(".")[0] in chosen:
            continue
        given, *groups = flatten(model)[name], *name.split(".")
        if untupled(given) not in (untupled(default[name]), untupled(value)):
            raise UsageError(
                f"config.model.{name}={given!r}: {path / 'config.json'} says {value!r}; "
                "leave it out, as the directory says what the model is"
            )
        part = model
        for group in groups[:-1]:
            part = part[group]
        part[groups[-1]] = value


def fill_missing_fields(saved: Json) -> Json:
    """A run's saved config, with the fields that came since at their defaults.

    UsageError names what a run has always had and this lacks, and a field of another type.
    """
    for name in ("task", "rewards", "algorithm", "model", "rollout", "optimizer"):
        if not isinstance(saved.get(name), dict):
            raise UsageError(f"{name} is {saved.get(name, 'missing')!r}; valid: a group of fields")
    for group, name in (("algorithm", "preset"), ("task", "name")):
        if not isinstance(saved[group].get(name), str):
            raise UsageError(
                f"{group}.{name} is {saved[group].get(name, 'missing')!r}; valid: a name"
            )
    base = defaults()
    base.algorithm.preset = saved["algorithm"]["preset"]
    whole, known = {"chat_template_kwargs": {}, **saved}, flatten(saved)
    types = {f"algorithm.{name}": kind for name, kind in algorithm_fields().items()}
    for name, value in flatten(resolve(base).to_dict()).items():
        if name.split(".")[0] in ("task", "rewards"):
            continue
        if name in known:
            if known[name] is not None or name not in types:  # of an algorithm, None is off
                _check_saved(name, known[name], types.get(name, type(value)))
            continue
        *groups, leaf = name.split(".")
        part = whole
        for group in groups:
            if not isinstance(part.get(group, {}), dict):
                raise UsageError(f"{group} is {part[group]!r}; valid: a group of fields")
            part[group] = {**part.get(group, {})}
            part = part[group]
        part[leaf] = value
    return whole


def _check_saved(name: str, value: Any, kind: type) -> None:
    """UsageError unless a value, as JSON has it, is of a field's type."""
    fits: Any = {float: int | float, tuple: list | tuple}.get(kind, kind)
    is_bool = isinstance(value, bool) and kind not in (bool, object)
    if is_bool or not isinstance(value, fits):
        raise UsageError(f"{name} is {value!r}; valid: a value of type {kind.__name__}")
