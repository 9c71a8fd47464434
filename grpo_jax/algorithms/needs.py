"""What a component of an algorithm needs, declared where the component is defined.

What a component reads, it names: a keyword-only argument `values` without a default needs a critic,
`step_rewards` a task that judges single steps. What a signature cannot say, `needs` does. A
teacher's log-probs, say, would be one more need here, with its argument.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import TypeVar

F = TypeVar("F", bound=Callable)

UNDECLARED_GROUP = 2  # of an advantage: safe, as it would else compare a completion with itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What a component of an algorithm needs.

    group   completions of each prompt, at least; None = not declared
    critic  a critic, whose `values` it reads
    steps   a task that judges single steps, whose `step_rewards` and `step_ends` it reads
    fields  values that fields of Algorithm must have
    """

    group: int | None = None
    critic: bool = False
    steps: bool = False
    fields: Mapping[str, object] = dataclasses.field(default_factory=dict)


def needs(
    *, group: int | None = None, critic: bool = False, steps: bool = False, **fields: object
) -> Callable[[F], F]:
    """A decorator that declares what a component needs, as `Needs` says; fields by their names."""
    return declares(needs=Needs(group=group, critic=critic, steps=steps, fields=fields))


def declares(**facts: object) -> Callable[[F], F]:
    """A decorator that gives a component attributes, which its own module explains."""

    def declare(component: F) -> F:
        vars(component).update(facts)
        return component

    return declare


def needs_of(component: Callable) -> Needs:
    """What a component declares, and what its signature asks for."""
    declared: Needs = getattr(component, "needs", Needs())
    asked = required(component)
    return dataclasses.replace(
        declared,
        critic=declared.critic or "values" in asked,
        steps=declared.steps or bool({"step_rewards", "step_ends"} & asked),
    )


def required(component: Callable) -> set[str]:
    """The keyword-only arguments that a component cannot do without."""
    parameters = inspect.signature(component).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty}


def takes(component: Callable, name: str) -> bool:
    """Whether a component has an argument of that name, needed or not."""
    return name in inspect.signature(component).parameters
