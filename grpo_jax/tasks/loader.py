"""Batches of problems whose position can be saved and restored (the one module here with grain).

Separate from the tasks because grain imports JAX, and reward workers must start without it.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import grain

from grpo_jax.files import Json
from grpo_jax.tasks.problem import Problem, Source

Position: TypeAlias = Mapping[str, Any]  # in a stream of problems, JSON-able

GIVE_UP = 100_000


def batches(
    source: Source,
    batch_size: int,
    seed: int,
    keep: Callable[[Problem], bool] | None = None,
    shuffle: bool = True,
) -> grain.DatasetIterator[list[Problem]]:
    """Lists of `batch_size` problems, forever, in a new order every epoch.

    `get_state()` is a small JSON-able position and `set_state()` continues exactly from it; nothing
    is read ahead. Problems that `keep` turns down are left out; ValueError where it keeps none.
    """
    if len(source) == 0:
        raise ValueError("the task has no problems to train on: it can only be evaluated")
    dataset = grain.MapDataset.source(source).seed(seed)
    if shuffle:
        dataset = dataset.shuffle()
    stream = dataset.repeat().to_iter_dataset(
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    )
    if keep is not None:
        stream = stream.filter(_giving_up(keep, len(source)))
    batched = stream.batch(batch_size, drop_remainder=True, batch_fn=list)
    return cast(grain.DatasetIterator, iter(batched))


class Stream:
    """Problems of a source, `size` at a time, forever, and their position in a checkpoint.

    Problems that were only peeked at come again after a position is restored.
    """

    def __init__(self, source: Source, size: int, seed: int, keep: Callable[[Problem], bool]):
        """Begin; problems that `keep` turns down are left out, and counted. As `batches`."""
        self.dropped, self._keep = 0, keep
        self._data = batches(source, size, seed, self._kept)
        self._peeked: tuple[list[Problem], Json] | None = None

    def _kept(self, problem: Problem) -> bool:
        kept = self._keep(problem)
        self.dropped += not kept
        return kept

    def __next__(self) -> list[Problem]:
        drawn, self._peeked = self.peek(), None
        return drawn

    def peek(self) -> list[Problem]:
        """The problems that `next` will return."""
        if self._peeked is None:
            before = self._position()
            self._peeked = next(self._data), before
        return self._peeked[0]

    def get_state(self) -> Json:
        """The position, as JSON has it."""
        return self._peeked[1] if self._peeked else self._position()

    def _position(self) -> Json:
        return {"dropped": self.dropped, "data": self._data.get_state()}

    def set_state(self, state: Position) -> None:
        """Continue from a position."""
        self.dropped, self._peeked = state["dropped"], None
        self._data.set_state(state["data"])


def _giving_up(keep: Callable[[Problem], bool], size: int) -> Callable[[Problem], bool]:
    """`keep`, but an error where it has turned down every problem of two epochs in a row."""
    limit = min(2 * size, GIVE_UP)
    dropped = itertools.count(1)

    def kept(problem: Problem) -> bool:
        nonlocal dropped
        if keep(problem):
            dropped = itertools.count(1)
            return True
        if next(dropped) >= limit:
            raise ValueError(
                f"no problem was kept of the last {limit}; the last dropped: {problem.prompt!r}"
            )
        return False

    return kept
