"""Score a batch of completions with several rewards, in parallel and with time limits."""

import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, Protocol

import numpy as np
from pebble import ProcessExpired, ProcessPool

from grpo_jax.rewards.call import (
    Group,
    RewardError,
    call_in_worker,
    call_reward,
    dump_functions,
    excerpt,
    load_functions,
)
from grpo_jax.rewards.processes import context
from grpo_jax.rewards.text import Reward

__all__ = ["RewardError", "Rewarder", "Scores"]

POLL_S = 1.0  # between looks whether the processes still are

Call = tuple[str, int, int | None]  # reward, prompt, completion (None: the whole group)


class Record(Protocol):
    """What a problem must offer here; `tasks.Problem` does."""

    @property
    def prompt(self) -> str | list[dict[str, str]]:
        """Text, or chat messages."""

    @property
    def columns(self) -> dict[str, Any]:
        """What the rewards get by name."""


class Scores(NamedTuple):
    """A batch's rewards, part by part.

    parts     name -> f32[P, G]; NaN where the reward abstained or hung
    timeouts  how many (reward, completion) pairs hung or killed their process
    lost      bool[P, G]; True where one of the completion's rewards did
    """

    parts: dict[str, np.ndarray]
    timeouts: int
    lost: np.ndarray


class Rewarder:
    """Scores groups of completions: `rewarder(problems, completions) -> Scores`.

    functions   name -> reward, in TRL's signature; lambdas and notebook functions work
    workers     processes; 0 runs the rewards here, without a time limit
    timeout_s   seconds that one call, on one prompt's group, may take

    A call that hangs or dies is killed and retried one completion at a time; what hangs again is
    NaN, counted, and told of on stderr. Use it in a `with`, or close() it; it leaves no process
    behind.
    """

    def __init__(
        self, functions: Mapping[str, Reward], *, workers: int = 0, timeout_s: float = 10.0
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers={workers}: valid: 0 (in this process) or more")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s={timeout_s}: valid: seconds above 0")
        self.functions = dict(functions)
        self.workers = workers
        self.timeout_s = timeout_s
        self._thread, self._lock = ThreadPoolExecutor(1), threading.RLock()
        self._pickled = dump_functions(self.functions) if workers else b""
        self._pool: ProcessPool | None = None
        if workers:
            self._start()

    def __call__(
        self,
        problems: Sequence[Record],
        completions: Sequence[Sequence[str]],
        completion_ids: Sequence[Sequence[Sequence[int]]] | None = None,
    ) -> Scores:
        """The rewards of completions [P][G] for problems [P].

        ValueError for ragged or mismatched input; RewardError where a reward fails.
        """
        groups = _groups(problems, completions, completion_ids)
        shape = len(groups), len(completions[0]) if completions else 0
        parts = {name: np.full(shape, np.nan, np.float32) for name in self.functions}
        lost = np.zeros(shape, bool)
        calls: list[Call] = [(name, p, None) for name in self.functions for p in range(len(groups))]
        if not self.workers:
            for name, p, _ in calls:
                parts[name][p] = call_reward(name, self.functions[name], groups[p])
            return Scores(parts, 0, lost)
        hung = self._run(calls, groups, parts)
        singles: list[Call] = [(name, p, g) for name, p, _ in hung for g in range(shape[1])]
        hung = self._run(singles, groups, parts)
        for _, p, g in hung:
            lost[p, g] = True
        _warn(hung, groups, self.timeout_s)
        return Scores(parts, len(hung), lost)

    def submit(
        self, problems: Sequence[Record], completions: Sequence[Sequence[str]]
    ) -> Callable[[], Scores]:
        """Start to score, in a thread, and return the function that waits for the scores.

        That one raises what a call does.
        """
        return self._thread.submit(self, problems, completions).result

    def _run(
        self, calls: Sequence[Call], groups: Sequence[Group], parts: dict[str, np.ndarray]
    ) -> dict[Call, Exception]:
        """Fills `parts` and returns the calls that hung or died, and how."""
        futures = [(call, *self._schedule(call, groups)) for call in calls]
        hung: dict[Call, Exception] = {}
        try:
            for call, pool, future in futures:
                name, p, g = call
                try:
                    result = _result(pool, future)
                except (FutureTimeout, ProcessExpired, BrokenProcessPool) as error:
                    hung[call] = error
                    continue
                except Exception as error:  # what the process pool itself could not send
                    raise RewardError(
                        f"reward {name!r}: prompt {excerpt(groups[p].prompt)} or its columns "
                        f"cannot be sent to a worker: {error}"
                    ) from error
                if isinstance(result, str):
                    raise RewardError(result)
                parts[name][p, slice(None) if g is None else slice(g, g + 1)] = result
        except BaseException:  # an error or Ctrl-C: what still waits must not run
            for *_, future in futures:
                future.cancel()
            raise
        return hung

    def _schedule(self, call: Call, groups: Sequence[Group]) -> tuple[ProcessPool, Future]:
        name, p, g = call
        group = groups[p] if g is None else groups[p].single(g)
        with self._lock:  # a thread must start nothing that close() has not seen
            pool = self._pool
            if pool is None:
                raise RuntimeError("the Rewarder is closed")
            if not pool.active:  # pebble gives up on a pool that lost an idle worker
                self._finalizer()
                pool = self._start()
            return pool, pool.schedule(call_in_worker, (name, group), timeout=self.timeout_s)

    def _start(self) -> ProcessPool:
        pool = ProcessPool(
            self.workers, initializer=load_functions, initargs=(self._pickled,), context=context()
        )
        pool.schedule(int)  # the first call starts the processes, in the background
        self._pool = pool
        self._finalizer = weakref.finalize(self, _stop, pool)
        return pool

    def close(self) -> None:
        """Stops the processes; what they were doing is lost."""
        with self._lock:
            if self._pool is not None:
                self._finalizer()
                self._pool = None
        self._thread.shutdown(wait=False)

    def __enter__(self) -> "Rewarder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _warn(hung: Mapping[Call, Exception], groups: Sequence[Group], timeout_s: float) -> None:
    """Tell, in one line a reward, of the completions that it hung or died on."""
    for name in dict.fromkeys(name for name, *_ in hung):
        (_, p, g), *others = [call for call in hung if call[0] == name]
        error = hung[name, p, g]
        how = "lost its process"
        if isinstance(error, FutureTimeout):
            how = f"took more than {timeout_s} s"
        elif isinstance(error, ProcessExpired):
            how = f"killed its process (exit status {error.exitcode})"
        print(
            f"warning: reward {name!r} {how} and counts as None; "
            f"prompt: {excerpt(groups[p].prompt)}; "
            f"completion: {excerpt(groups[p].completions[g or 0])}"
            + (f" ({len(others)} more completions were lost)" if others else ""),
            file=sys.stderr,
        )


def _result(pool: ProcessPool, future: Future) -> list[float] | str:
    """What the call returned; BrokenProcessPool where its pool gave up, and it with the pool."""
    while pool.active:
        try:
            return future.result(POLL_S)
        except FutureTimeout:
            if future.done():  # the call's own time limit
                raise
    if future.done():
        return future.result()
    raise BrokenProcessPool("the processes were killed")


def _stop(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


def _groups(
    problems: Sequence[Record],
    completions: Sequence[Sequence[str]],
    completion_ids: Sequence[Sequence[Sequence[int]]] | None,
) -> list[Group]:
    if len(problems) != len(completions):
        raise ValueError(f"{len(problems)} problems but completions for {len(completions)}")
    if len(sizes := {len(group) for group in completions}) > 1:
        raise ValueError(f"every prompt needs the same number of completions; got {sorted(sizes)}")
    ids = (
        [{}] * len(problems)
        if completion_ids is None
        else [{"completion_ids": group} for group in completion_ids]
    )
    return [
        Group(p.prompt, list(_trl_completions(p, group)), p.columns, extras)
        for p, group, extras in zip(problems, completions, ids, strict=True)
    ]


def _trl_completions(problem: Record, completions: Sequence[str]) -> Iterator[Any]:
    """Text for a text prompt; for chat messages, a list with the assistant's message."""
    for text in completions:
        chat = [{"role": "assistant", "content": text}]
        yield text if isinstance(problem.prompt, str) else chat
