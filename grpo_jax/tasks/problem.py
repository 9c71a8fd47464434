"""Tasks: problems to train on, problems held out, and a function that judges completions."""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeAlias, TypeVar

from grpo_jax.rewards.text import Reward
from grpo_jax.rewards.turn import Prompt

Options: TypeAlias = Mapping[str, Any]  # of a task, by name
# A completion's steps: after how many characters of its text each ends, and its reward.
Steps = Sequence[tuple[int, float]]
T = TypeVar("T")
OBJECT = "object"  # in config.task, the fingerprint of a task that a program gave as an object


@dataclass(frozen=True)
class Problem:
    """One prompt, as text or chat messages, and the columns that reach the rewards by name.

    where  the file and record that it was read from, "train.jsonl:17", for messages
    """

    prompt: Prompt
    columns: dict[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False, repr=False)


class Source(Protocol):
    """Problems by index; the same index always gives the same problem."""

    def __len__(self) -> int:
        """How many problems."""

    def __getitem__(self, index: int, /) -> Problem:
        """The problem at `index`."""


def listed(source: Source) -> Iterator[Problem]:
    """The problems of a source that are there already, as those of a file are; of one that draws
    them, none. Of several sources, each one's once."""
    if isinstance(source, Sequence):
        yield from source
    elif hasattr(source, "listed"):
        yield from source.listed()


@dataclass(frozen=True)
class Task:
    """A named source of problems, and the function that judges a completion.

    name      as in the registry
    train     problems to learn from
    heldout   problems never in train
    accuracy  reward: 1.0 for a right completion, 0.0 for a wrong one, partial credit between
    solve     a worked solution, for a cold start; None where the task has none
    symbols   a character-level vocabulary, tags such as "<think>" whole; None where unknown
    overlap   train problems that were removed because their prompt is held out
    steps     judges single steps of a solution, given the problem and a completion's text: 1.0 for
              a right step, 0.0 for a wrong one, so that they compare with the reward of the
              outcome; None where the task does not judge steps
    files     the files and folders that problems were read from
    pairs     whether each problem has a "chosen" and a "rejected" completion among its columns
    """

    name: str
    train: Source
    heldout: Source
    accuracy: Reward
    solve: Callable[[Problem], str] | None = None
    symbols: tuple[str, ...] | None = None
    overlap: int = 0
    steps: Callable[[Problem, str], Steps] | None = None
    files: tuple[Path, ...] = ()
    pairs: bool = False


def judges_steps(make: T) -> T:
    """Mark a function of TASKS whose tasks may have `Task.steps`, for messages that list them."""
    vars(make)["judges_steps"] = True
    return make


def unread(name: str = "unread") -> Task:
    """A task whose problems are not read: for a model that is only sampled, or written."""

    def absent(*_: object, **__: object) -> NoReturn:
        raise ValueError(f"the problems of the task {name!r} were not read")

    return Task(name, (), (), absent, steps=absent)


# Sizes that can be had: an order of all training problems, and a list of those that are held out.
MOST_TRAIN, MOST_HELDOUT = 10**12, 10**5


@dataclass(frozen=True)
class Drawn:
    """A source of `size` problems, each drawn anew from (seed, index)."""

    size: int
    seed: int
    draw: Callable[[random.Random], Problem]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Problem:
        if not 0 <= index < self.size:
            raise IndexError(f"problem {index} of {self.size}")
        return self.draw(random.Random(f"{self.seed} {index}"))


def is_heldout(key: str, fraction: float) -> bool:
    """Whether the problem with this key is held out: a fixed hash, the same in every run."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def split(
    draw: Callable[[random.Random], T],
    key: Callable[[T], str],
    problem: Callable[[T], Problem],
    *,
    train_size: int,
    heldout_size: int,
    seed: int,
    fraction: float = 0.2,
) -> tuple[Source, Source]:
    """Train and held-out sources of a generated task, disjoint by the hash of the key.

    Train draws again until the key falls in train. Held out are `heldout_size` distinct keys, the
    same for every seed so that seeds compare; ValueError where there are not that many.
    """
    if train_size < 1 or heldout_size < 1:
        raise ValueError(f"sizes: got train {train_size}, held-out {heldout_size}; valid: >= 1")
    if train_size > MOST_TRAIN or heldout_size > MOST_HELDOUT:
        raise ValueError(
            f"sizes: got train {train_size}, held-out {heldout_size}; valid: at most {MOST_TRAIN} "
            f"and {MOST_HELDOUT}"
        )

    def draw_train(rng: random.Random) -> Problem:
        for _ in range(1000):  # all held out has probability fraction**1000: no such key exists
            item = draw(rng)
            if not is_heldout(key(item), fraction):
                return problem(item)
        raise ValueError("every problem drawn is held out; allow more distinct problems")

    heldout = _distinct(draw, key, heldout_size, fraction)
    return Drawn(train_size, seed, draw_train), [problem(item) for item in heldout]


def _distinct(
    draw: Callable[[random.Random], T], key: Callable[[T], str], size: int, fraction: float
) -> Sequence[T]:
    rng = random.Random("heldout")
    found: dict[str, T] = {}
    since = 0  # the last new one; of n equally likely ones each draw misses the last by 1 - 1 / n
    while since < 1000 + 20 * len(found) / fraction:
        item, since = draw(rng), since + 1
        if is_heldout(name := key(item), fraction) and name not in found:
            found[name], since = item, 0
            if len(found) == size:
                return list(found.values())
    raise ValueError(
        f"heldout_size={size}: only {len(found)} distinct held-out problems were found; "
        f"valid: heldout_size <= {len(found)}, or settings with more distinct problems"
    )
