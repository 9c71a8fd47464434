"""Checks of the columns that rewards read, before there is any completion."""

from collections.abc import Callable, Mapping
from typing import Any

from grpo_jax.rewards.call import lacking, missing_column
from grpo_jax.rewards.cases import parse_cases
from grpo_jax.rewards.text import Reward

# What a run gives to a reward besides the columns of its record.
GIVEN = ("prompts", "completions", "prefill")


def misread(reward: Reward, columns: Mapping[str, object]) -> str:
    """What is wrong with the columns that a reward reads of a record; "" for nothing.

    A column may be missing, or hold nothing that the reward can judge by.
    """
    names = {*columns, *GIVEN}
    if missing := missing_column(reward, names):
        return f"the reward {lacking(missing, columns)}"
    column, check = _CHECKS.get(path_of(reward), ("", None))
    value = columns.get(column)
    if check is None or value is None:  # None: the reward abstains
        return ""
    try:
        check(reward, value)
    except ValueError as error:
        return str(error)
    return ""


def path_of(reward: Reward) -> str:
    """A reward's import path, "package.module:function"."""
    return ":".join(getattr(reward, name, "") for name in ("__module__", "__qualname__"))


def _judge(reward: Reward, answer: object) -> None:
    reward([""], [""], answer=[answer])


def _language(_: Reward, code: str) -> None:
    from grpo_jax.rewards.language import iso_code  # of an extra, which the reward is in itself

    iso_code(code)


# By the reward's import path: the column, and what raises ValueError for a wrong value of it.
_CHECKS: dict[str, tuple[str, Callable[[Reward, Any], Any]]] = {
    "grpo_jax.rewards.numbers:last_number": ("answer", _judge),
    "grpo_jax.rewards.numbers:numeric_answer.<locals>.numeric": ("answer", _judge),
    "grpo_jax.rewards.choices:choice": ("answer", _judge),
    "grpo_jax.rewards.code:code": ("cases", lambda _, cases: parse_cases(cases)),
    "grpo_jax.rewards.language:language": ("language", _language),
}
