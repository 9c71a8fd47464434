"""One call of one reward on one prompt's group, checked, in this process or in a worker."""

import inspect
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import numpy as np

from grpo_jax.rewards.text import Reward


class RewardError(ValueError):
    """A reward that raised, or returned something else than one number or None per completion."""


@dataclass(frozen=True)
class Group:
    """A prompt, its completions in TRL's shape, and the columns they share.

    extras holds what differs by completion: lists of one value each, such as completion_ids.
    """

    prompt: Any
    completions: Sequence[Any]
    columns: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def single(self, index: int) -> "Group":
        """The group of that one completion."""
        extras = {name: [values[index]] for name, values in self.extras.items()}
        return Group(self.prompt, [self.completions[index]], self.columns, extras)


def call_reward(name: str, function: Reward, group: Group) -> list[float]:
    """The reward's values, NaN where it abstains; RewardError names the reward and the record."""
    try:
        return _values(function, group)
    except (Exception, SystemExit) as error:
        culprit = error.index if isinstance(error, _Returned) else _culprit(function, group, error)
        raise RewardError(
            f"reward {name!r} {_reason(error)}; prompt: {excerpt(group.prompt)}; "
            f"completion: {excerpt(group.completions[culprit])}"
        ) from error


def _values(function: Reward, group: Group) -> list[float]:
    size = len(group.completions)
    columns = {name: [value] * size for name, value in group.columns.items()}
    given = {"prompts": [group.prompt] * size, "completions": group.completions}
    arguments: dict[str, Any] = columns | dict(group.extras) | given
    returned = function(**_accepted(function, arguments))
    try:
        values = list(returned)
    except TypeError:
        raise _Returned(f"returned {type(returned).__name__}; {_valid(size)}") from None
    if len(values) != size:
        raise _Returned(f"returned {len(values)} values; {_valid(size)}")
    return [_value(value, index, size) for index, value in enumerate(values)]


def _accepted(function: Reward, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that the function names, or all where it takes **columns.

    A missing one that has no default is an error that names the columns there are.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin without a signature
        return arguments
    keywords = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    required = {p.name for p in parameters if p.name in keywords and p.default is p.empty}
    if missing := sorted(required - arguments.keys()):
        raise _Returned(f"needs the column {missing[0]!r}; there are {sorted(arguments)}")
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return arguments
    return {name: value for name, value in arguments.items() if name in keywords}


def _value(value: Any, index: int, size: int) -> float:
    if value is None:
        return float("nan")
    try:
        array = np.asarray(value)
        if array.ndim == 0 and array.dtype.kind in "biuf" and np.isfinite(array):
            return float(array)
    except Exception:  # an array library may refuse; the value is then no number either
        pass
    raise _Returned(f"returned the value {excerpt(value)}; {_valid(size)}", index)


def _valid(size: int) -> str:
    return f"valid: {size} finite numbers or None, one per completion"


class _Returned(Exception):
    """What is wrong with a reward's arguments or return value, and at which completion."""

    def __init__(self, text: str, index: int = 0) -> None:
        super().__init__(text)
        self.index = index


def _culprit(function: Reward, group: Group, error: BaseException) -> int:
    """The first completion that raises the same error alone, else the group's first."""
    for index in range(len(group.completions)):
        try:
            _values(function, group.single(index))
        except (Exception, SystemExit) as alone:
            if type(alone) is type(error):
                return index
    return 0


def _reason(error: BaseException) -> str:
    if isinstance(error, _Returned):
        return str(error)
    last = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"raised {last}{where}"


def excerpt(value: Any, limit: int = 120) -> str:
    """`repr(value)`, cut to `limit` characters for an error message."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


# The worker's side: functions arrive once, by cloudpickle, before any time limit runs.

_functions: dict[str, Reward] = {}
_broken: list[str] = []


def load_functions(pickled: bytes) -> None:
    """Worker initialiser: keep the rewards; remember a failure, for a worker must not die here.

    The trainer alone decides when to stop: what a job's manager sends to every process of the job
    must not take its workers from under it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        _functions.update(cloudpickle.loads(pickled))
    except Exception as error:
        _broken.append(f"rewards cannot be loaded in a worker process: {_reason(error)}")


def call_in_worker(name: str, group: Group) -> list[float] | str:
    """The values, or the error's text: text always survives the way back, exceptions may not."""
    if _broken:
        return _broken[0]
    try:
        return call_reward(name, _functions[name], group)
    except RewardError as error:
        return str(error)


def dump_functions(functions: Mapping[str, Callable[..., Any]]) -> bytes:
    """The rewards as bytes; RewardError names one that cannot be shipped to a process."""
    for name, function in functions.items():
        try:
            cloudpickle.dumps(function)
        except Exception as error:
            raise RewardError(
                f"reward {name!r} cannot be sent to worker processes: {error}; "
                "valid: a function whose closure can be pickled, or workers=0"
            ) from error
    return cloudpickle.dumps(dict(functions))
