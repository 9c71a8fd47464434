"""One call of one reward on one prompt's group, checked, in this process or in a worker."""

import contextlib
import copy
import inspect
import pickle
import signal
import threading
import time
import traceback
from collections.abc import (
    Callable,
    Container,
    Iterable,
    Iterator,
    Mapping,
    MutableSequence,
    Sequence,
    Set,
)
from dataclasses import dataclass, field
from typing import Any, Protocol

import cloudpickle
import numpy as np

from grpo_jax.errors import excerpt
from grpo_jax.rewards.text import Completion, Reward
from grpo_jax.rewards.turn import Prompt

LARGEST = 1e18  # of a reward: advantages are reckoned with its square, in float32
LONGEST = 500  # characters of an exception's text in a message
# What TRL's trainer gives to rewards, and runs here do not.
OF_TRL = ("trainer_state", "log_metric", "log_extra", "completion_ids")
AT_START = "at_start"  # a reward's attribute: a function that loads what it needs, in each process


class RewardError(ValueError):
    """A reward that raised, or returned something else than one number or None per completion."""


class Record(Protocol):
    """The attributes of a problem that rewards need; `tasks.Problem` has them."""

    @property
    def prompt(self) -> Prompt:
        """Text, or chat messages."""

    @property
    def columns(self) -> Mapping[str, object]:
        """What the rewards get by name."""


@dataclass(frozen=True)
class Group:
    """A prompt, its completions in TRL's shape, and the columns they share.

    extras holds what differs by completion: lists of one value each, such as completion_ids.
    """

    prompt: Prompt
    completions: Sequence[Completion]
    columns: Mapping[str, object] = field(default_factory=dict)
    extras: Mapping[str, Sequence[object]] = field(default_factory=dict)

    def single(self, index: int) -> "Group":
        """The group of that one completion."""
        extras = {name: [values[index]] for name, values in self.extras.items()}
        return Group(self.prompt, [self.completions[index]], self.columns, extras)


def call_reward(name: str, function: Reward, group: Group) -> list[float]:
    """The reward's values, NaN where it abstains; RewardError names the reward and the record.

    Whatever the reward raises is its fault, KeyboardInterrupt too, unless a signal brought it.
    """
    with _signals() as interrupted:
        try:
            return _values(function, group)
        except BaseException as error:
            if interrupted():
                raise
            if isinstance(error, _Returned):
                culprit = error.index
            else:
                culprit = _culprit(function, group, error, interrupted)
            raise RewardError(
                f"reward {name!r} {_reason(error)}; prompt: {excerpt(group.prompt)}; "
                f"completion: {excerpt(group.completions[culprit])}"
            ) from error


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """A function that says whether the handler of SIGINT or SIGTERM has raised meanwhile."""
    raised = False

    def noting(handler: Callable[..., Any]) -> Callable[..., Any]:
        def note(number: int, frame: Any) -> None:
            nonlocal raised
            try:
                handler(number, frame)
            except BaseException:
                raised = True
                raise

        return note

    here = threading.current_thread() is threading.main_thread()  # handlers run in no other
    numbers = (signal.SIGINT, signal.SIGTERM) if here else ()
    before = {n: handler for n in numbers if callable(handler := signal.getsignal(n))}
    ours = {n: noting(handler) for n, handler in before.items()}
    for number, handler in ours.items():
        signal.signal(number, handler)
    try:
        yield lambda: raised
    finally:
        for number, handler in ours.items():
            if signal.getsignal(number) is handler:  # else a handler has set another
                signal.signal(number, before[number])


def _values(function: Reward, group: Group) -> list[float]:
    size = len(group.completions)
    columns = {name: [value] * size for name, value in group.columns.items()}
    # Copies, for a reward may change what it is given, and others read the same.
    given: dict[str, Any] = copy.deepcopy(
        {**group.extras, "prompts": [group.prompt], "completions": list(group.completions)}
    )
    given["prompts"] *= size
    returned = function(**accepted(function, columns | given))
    if inspect.isawaitable(returned) or inspect.isasyncgen(returned):
        if inspect.iscoroutine(returned):
            returned.close()  # else Python warns that nobody waited for it
        raise _Returned(
            "is asynchronous (async def); valid: a function that returns its values, as by "
            "asyncio.run"
        )
    # A mapping would be read as its keys, a set in any order, text as its characters, a table by
    # its columns.
    wrong = isinstance(returned, Mapping | Set | str | bytes | bytearray | memoryview)
    if wrong or getattr(returned, "ndim", 1) != 1:
        raise _Returned(f"returned {_kind(returned)}; {_valid(size)}")
    try:
        values = list(returned)
    except TypeError:
        raise _Returned(f"returned {_kind(returned)}; {_valid(size)}") from None
    if len(values) != size:
        raise _Returned(f"returned {len(values)} values; {_valid(size)}")
    return [_value(value, index, size) for index, value in enumerate(values)]


def accepted(function: Reward, arguments: dict[str, object]) -> dict[str, object]:
    """The arguments that a reward names, or all where it takes **columns.

    A missing one that has no default is an error that names the columns there are.
    """
    if missing := missing_column(function, arguments):
        raise _Returned(lacking(missing, arguments))
    parameters = _parameters(function)
    if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return arguments
    keywords = {p.name for p in parameters if p.kind in _NAMED}
    return {name: value for name, value in arguments.items() if name in keywords}


def missing_column(function: Reward, names: Container[str]) -> str:
    """The first argument, by name, that a reward needs and that is not in `names`; "" for none."""
    required = {
        p.name for p in _parameters(function) or () if p.kind in _NAMED and p.default is p.empty
    }
    return min((name for name in required if name not in names), default="")


def lacking(name: str, there: Iterable[str]) -> str:
    """What is wrong with a reward that needs an argument which is not `there`."""
    if name in OF_TRL:
        return f"needs TRL's {name!r}, which is not given here; valid: an argument with a default"
    return f"needs the column {name!r}; there are {sorted(there)}"


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _parameters(function: Reward) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:  # a builtin without a signature
        return None


def _kind(value: object) -> str:
    dims = getattr(value, "ndim", 1)
    return type(value).__name__ + (f" of {dims} dimensions" if dims != 1 else "")


def _value(value: object, index: int, size: int) -> float:
    if value is None:
        return float("nan")
    number = _number(value)
    if number is None:
        raise _Returned(f"returned the value {excerpt(value)}; {_valid(size)}", index)
    with np.errstate(over="ignore"):
        if not np.isfinite(np.float32(number)):
            beyond = " beyond float32" if np.isfinite(number) else ""
            raise _Returned(f"returned the value {excerpt(value)}{beyond}; {_valid(size)}", index)
    return number


def _number(value: object) -> float | None:
    """The value of any library's scalar; None for anything else, such as text or a date."""
    kind = getattr(getattr(value, "dtype", None), "kind", "f")
    if getattr(value, "ndim", 0) or kind in "cMmSUO" or not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except Exception:  # an array library may refuse, and a Python integer be too large
        return None


def _valid(size: int) -> str:
    return f"valid: {size} finite numbers or None, one per completion"


class _Returned(Exception):
    """What is wrong with a reward's arguments or return value, and at which completion."""

    def __init__(self, text: str, index: int = 0) -> None:
        super().__init__(text)
        self.index = index


def _culprit(
    function: Reward, group: Group, error: BaseException, interrupted: Callable[[], bool]
) -> int:
    """The first completion that raises the same error by itself, else the group's first."""
    for index in range(len(group.completions)):
        try:
            _values(function, group.single(index))
        except BaseException as single:
            if interrupted():
                raise
            if type(single) is type(error):
                return index
    return 0


def _reason(error: BaseException) -> str:
    if isinstance(error, _Returned):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"raised {_first_line(error)}{where}"


def _first_line(error: BaseException) -> str:
    """An exception's type and the first line of its text; notes and what follows are left out."""
    kind = type(error)
    ours = kind.__module__ in ("builtins", "__main__")
    name = kind.__qualname__ if ours else f"{kind.__module__}.{kind.__qualname__}"
    try:
        lines = str(error).strip().splitlines()
    except BaseException:  # an exception's text is a program, too
        lines = []
    return f"{name}: {_cut(lines[0], LONGEST)}" if lines else name


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def refuse_large(
    problems: Sequence[Record], completions: Sequence[Sequence[str]], rewards: np.ndarray
) -> None:
    """RewardError where float32 holds no squares, and so no spread, of rewards f32[N, P, G]."""
    if (large := np.abs(rewards) > LARGEST).any():
        n, p, g = np.argwhere(large)[0]
        raise RewardError(
            f"the rewards of config.rewards, weighed, are {rewards[n, p, g]:g} for the prompt "
            f"{excerpt(problems[p].prompt)}, completion {excerpt(completions[p][g])}; valid: up to "
            f"{LARGEST:g}, whose square float32 holds"
        )


# The worker's side: functions arrive once, by cloudpickle, before any time limit runs.

_functions: dict[str, Reward] = {}
_broken: list[str] = []
_loaded: set[str] = set()  # the rewards that have returned here, or were loaded at the start
_clock: MutableSequence[float] = []


def load_functions(pickled: bytes, clock: MutableSequence[float]) -> None:
    """Worker initialiser: keep the rewards; remember a failure, for a worker must not die here.

    clock  shared with the trainer: of each call when it began, see `call_in_worker`

    Only the trainer decides when to stop: what a job's manager sends to every process of the job
    must not take its workers from under it.
    """
    global _clock
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _clock = clock
    named = "rewards"
    try:
        _functions.update(cloudpickle.loads(pickled))
        for name, function in _functions.items():
            if prepare := getattr(function, AT_START, None):
                named = f"reward {name!r}"
                prepare()
                _loaded.add(name)
    except BaseException as error:
        _broken.append(f"{named} cannot be loaded in a worker process: {_reason(error)}")


def call_in_worker(name: str, group: bytes, slot: int) -> list[float] | str:
    """The values, or the error's text: text always survives the way back, exceptions may not.

    group  a Group, pickled
    slot   where the clock gets time.monotonic(), negative if the reward may have to load first
    """
    if _broken:
        return _broken[0]
    now = time.monotonic()
    _clock[slot] = now if name in _loaded else -now
    try:
        return call_reward(name, _functions[name], _unpickled(name, group))
    except RewardError as error:
        return str(error)
    finally:
        _loaded.add(name)


def _unpickled(name: str, group: bytes) -> Group:
    try:
        return pickle.loads(group)
    except BaseException as error:
        raise RewardError(
            f"reward {name!r}: a prompt or its columns cannot be read in a worker: {_reason(error)}"
        ) from error


def dump_group(name: str, group: Group) -> bytes:
    """The group as bytes; RewardError names a prompt that cannot be sent to a process."""
    try:
        return pickle.dumps(group, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise RewardError(
            f"reward {name!r}: prompt {excerpt(group.prompt)} or its columns cannot be sent to a "
            f"worker: {_first_line(error)}"
        ) from error


def dump_functions(functions: Mapping[str, Callable]) -> bytes:
    """The rewards as bytes; RewardError names one that cannot be shipped to a process."""
    for name, function in functions.items():
        try:
            cloudpickle.dumps(function)
        except Exception as error:
            raise RewardError(
                f"reward {name!r} cannot be sent to worker processes: {_first_line(error)}; "
                "valid: a function whose closure can be pickled, or workers=0"
            ) from error
    return cloudpickle.dumps(dict(functions))
