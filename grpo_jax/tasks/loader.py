"""Batches of problems whose position can be saved and restored (the one module here with grain).

Kept apart from the tasks because grain imports JAX, and reward workers must start without it.
"""

import itertools
from collections.abc import Callable
from typing import cast

import grain

from grpo_jax.tasks.problem import Problem, Source

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


class Counted:
    """A test of problems that counts those it turns down: `dropped`, which may be restored."""

    def __init__(self, keep: Callable[[Problem], bool]):
        """Count what `keep` turns down."""
        self.keep, self.dropped = keep, 0

    def __call__(self, problem: Problem) -> bool:
        """Whether the problem is kept."""
        kept = self.keep(problem)
        self.dropped += not kept
        return kept


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
