"""Rewards by name: the built-in ones, the task's own, or any importable function."""

from typing import cast

from grpo_jax.errors import unknown
from grpo_jax.registry import imported
from grpo_jax.rewards.choices import choice
from grpo_jax.rewards.form import format_tags
from grpo_jax.rewards.numbers import last_number, numeric_answer
from grpo_jax.rewards.style import length, repetition
from grpo_jax.rewards.text import Reward, exact_answer

REWARDS: dict[str, Reward] = {
    "format": format_tags,
    "exact_answer": exact_answer,
    "numeric_answer": numeric_answer(),
    "last_number": last_number,
    "choice": choice,
    "repetition": repetition(),
    "length": length,
}
# Imported when asked for: name -> its import path, and the extra that it needs.
EXTRAS = {
    "math_verify": ("grpo_jax.rewards.math:math_verify", "math"),
    "code": ("grpo_jax.rewards.code:code", "code"),
    "language": ("grpo_jax.rewards.language:language", "language"),
}


def resolve(name: str, accuracy: Reward | None = None) -> Reward:
    """The reward that `name` stands for; `accuracy` is the task's own.

    `name` is one of REWARDS or EXTRAS, "accuracy", or an import path "package.module:function".
    ValueError names what was not found and the nearest valid name, or the extra to install.
    """
    if name in EXTRAS:
        return _from_extra(name)
    if ":" in name:
        return cast(Reward, imported("reward", name))
    known = REWARDS | ({"accuracy": accuracy} if accuracy is not None else {})
    if name in known:
        return known[name]
    if name == "accuracy":
        raise ValueError("reward 'accuracy' is the task's own, and no task was given")
    raise ValueError(unknown("reward", name, [*known, *EXTRAS]) + '; or "package.module:function"')


def _from_extra(name: str) -> Reward:
    path, extra = EXTRAS[name]
    try:
        return cast(Reward, imported("reward", path))
    except ValueError as error:
        raise ValueError(
            f"reward {name!r} needs an extra: pip install 'grpo_jax[{extra}]' ({error.__cause__})"
        ) from error
