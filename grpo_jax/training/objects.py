"""Rewards and tasks that are given as objects, where a config has names."""

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict, FrozenConfigDict

from grpo_jax.config import resolve
from grpo_jax.config.fields import FrozenFields
from grpo_jax.errors import UsageError
from grpo_jax.rewards.registry import EXTRAS, REWARDS
from grpo_jax.rewards.text import Reward
from grpo_jax.tasks.problem import OBJECT, Source, Task

Rewards = Sequence[str | Reward] | Mapping[str, Reward]
READ = 256  # problems of each side of a task that its fingerprint is of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named:
    """A resolved config that names the objects, and the rewards among them by name."""

    config: FrozenConfigDict
    functions: Mapping[str, Reward]


def name_objects(
    config: ConfigDict | FrozenConfigDict, rewards: Rewards | None = None, task: Task | None = None
) -> Named:
    """The config with names for the objects; UsageError as `resolve` does, and for a nameless one.

    rewards  in place of config.rewards, None = as these are: functions by name, or a list of
             functions and of names as config.rewards has them. Each weighs what config.rewards
             says, or 1.
    task     in place of config.task
    """
    if not isinstance(config, ConfigDict | FrozenConfigDict):
        raise UsageError(f"config: {config!r}; valid: a config, as grpo_jax.load_config gives")
    fields = config.to_dict()
    functions: dict[str, Reward] = {}
    if rewards is not None:
        names, functions = _by_name(rewards)
        _check_names(functions)
        fields["rewards"] = {name: fields["rewards"].get(name, 1.0) for name in names}
    if task is not None:
        _check_task(task)
        fields["task"] = {"name": task.name, OBJECT: fingerprint_of_task(task)}
    return Named(config=resolve(FrozenFields(fields)), functions=functions)


def _by_name(rewards: Rewards) -> tuple[list[str], dict[str, Reward]]:
    """The names of rewards, and those that are functions."""
    if isinstance(rewards, Mapping):
        for name, function in rewards.items():
            if not callable(function):
                raise UsageError(f"rewards: {name!r} is {function!r}; valid: a function")
        return list(rewards), dict(rewards)
    if isinstance(rewards, str) or not isinstance(rewards, Sequence):
        raise UsageError(f"rewards: {rewards!r}; valid: a list of functions and names, or a dict")
    names: list[str] = []
    functions: dict[str, Reward] = {}
    for reward in rewards:
        name = reward if isinstance(reward, str) else getattr(reward, "__name__", "<nameless>")
        if not (isinstance(reward, str) or callable(reward)) or "<" in name:
            raise UsageError(
                f'rewards: {reward!r} has no name; valid: {{"name": function}}, or a def'
            )
        if name in names:
            raise UsageError(f'rewards: two are called {name!r}; valid: {{"name": function}}')
        names.append(name)
        if not isinstance(reward, str):
            functions[name] = reward
    return names, functions


def _check_names(functions: Mapping[str, Reward]) -> None:
    """A name that stands for a reward already would mean another one without the object."""
    for name in functions:
        if name in ("accuracy", *REWARDS, *EXTRAS) or ":" in name:
            raise UsageError(f"rewards: {name!r} stands for another; valid: {{'another name': f}}")


def _check_task(task: Task) -> None:
    if not isinstance(task, Task):
        raise UsageError(f"task: {task!r}; valid: a grpo_jax.Task")
    for name, least in (("train", 1), ("heldout", 0)):
        source = getattr(task, name)
        if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
            raise UsageError(f"task.{name}: {source!r}; valid: a list of grpo_jax.Problem")
        if len(source) < least:
            raise UsageError(f"task.{name} is empty; valid: one problem or more")


def fingerprint_of_task(task: Task) -> str:
    """A hash of the number of a task's problems, and of the first ones of each side, by their repr:
    columns should hold plain values."""
    digest = hashlib.blake2b(digest_size=16)
    for source in (task.train, task.heldout):
        digest.update(f"{len(source)}\n".encode())
        for problem in _first(source):
            digest.update(f"{problem.prompt!r} {problem.columns!r}\n".encode())
    return digest.hexdigest()


def _first(source: Source):
    return map(source.__getitem__, itertools.islice(range(len(source)), READ))
