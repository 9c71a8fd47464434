"""Call several rewards on a batch of completions, in parallel and with time limits."""

import contextlib
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeGuard

import numpy as np
from pebble import ProcessExpired, ProcessPool

from grpo_jax.errors import excerpt
from grpo_jax.rewards.batch import Batch, Call
from grpo_jax.rewards.call import (
    Group,
    Record,
    RewardError,
    call_in_worker,
    call_reward,
    dump_functions,
    dump_group,
    load_functions,
)
from grpo_jax.rewards.limits import Limits
from grpo_jax.rewards.processes import CLEAN, context
from grpo_jax.rewards.text import Completion, Reward
from grpo_jax.rewards.turn import Prompt

__all__ = ["Failures", "RewardError", "Rewarder", "Scores", "scored_by"]

REWARDS = "rewards"  # the column that names a problem's rewards, where not all apply
POLL_S = 0.1  # between looks at what is overdue
RESTARTS = 3  # of the processes, one after the other, without a call that returns


class Scores(NamedTuple):
    """A batch's rewards.

    parts     name of a reward -> f32[P, G]; NaN where the reward abstained, hung or was not asked
    timeouts  how many (reward, completion) pairs hung or killed their process
    lost      bool[P, G]; True where one of the completion's rewards did
    failed    name -> how a reward that was asked did so on every completion, "" where it did not
    """

    parts: dict[str, np.ndarray]
    timeouts: int
    lost: np.ndarray
    failed: Mapping[str, str] = {}


def scored_by(problem: Record, reward: str) -> bool:
    """Whether a reward applies to a problem: the column `rewards` may leave it out.

    ValueError where that column holds no names.
    """
    names = problem.columns.get(REWARDS)
    if names is None:
        return True
    if not are_names(names):
        raise ValueError(
            f"column {REWARDS!r} of the prompt {excerpt(problem.prompt)} is {excerpt(names)}; "
            "valid: a list of the names of the rewards that score it"
        )
    return reward in names


def are_names(value: object) -> TypeGuard[Collection[str]]:
    """Whether a value is a list, or the like, of texts: no mapping, and no one text."""
    if not isinstance(value, Collection) or isinstance(value, str | bytes | Mapping):
        return False
    return all(isinstance(name, str) for name in value)


class Rewarder:
    """Calls rewards on groups of completions: `rewarder(problems, completions) -> Scores`.

    functions   name -> reward, in TRL's signature; lambdas and notebook functions work
    workers     processes; 0 runs the rewards here, without a time limit
    timeout_s   seconds that a reward may take for one completion: a call on a prompt's group of G
                has G times as many. Loading is not part of it, see `limits.Limits`.
    prefill     what a prompt, as the model reads it, holds of the completion's turn: the column
                `prefill` (`rewards.turn`)

    A call that hangs or dies is killed, and a group asked about again one completion at a time;
    what is lost then is NaN, counted, and warned of on stderr. Use it in a `with`, or close() it;
    it leaves no process behind.
    """

    def __init__(
        self,
        functions: Mapping[str, Reward],
        *,
        workers: int = 0,
        timeout_s: float = 10.0,
        prefill: Callable[[Prompt], str] | None = None,
    ) -> None:
        if workers < 0:
            raise ValueError(f"workers={workers}: valid: 0 (in this process) or more")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s={timeout_s}: valid: seconds above 0")
        self.functions = dict(functions)
        self.workers = workers
        self.timeout_s = timeout_s
        self.prefill = prefill
        self._thread, self._lock = ThreadPoolExecutor(1), threading.RLock()
        self._scoring = threading.Lock()  # one batch at a time
        self._pickled = dump_functions(self.functions) if workers else b""
        self._pool: ProcessPool | None = None
        self._restarts = 0
        if workers:
            # Two calls a process wait for it; what begins when is what limits are reckoned by.
            self._limits = Limits(context().RawArray("d", 2 * workers), timeout_s)
            self._start()

    def __call__(
        self,
        problems: Sequence[Record],
        completions: Sequence[Sequence[str]],
        completion_ids: Sequence[Sequence[Sequence[int]]] | None = None,
        names: Sequence[str] | None = None,
    ) -> Scores:
        """The rewards of completions [P][G] for problems [P].

        names  the rewards that apply to every problem, and no others; None = all that it asks for

        ValueError for ragged or mismatched input; RewardError where a reward fails.
        """
        groups = _groups(problems, completions, completion_ids, self.prefill)
        shape = len(groups), len(completions[0]) if completions else 0
        parts = {name: np.full(shape, np.nan, np.float32) for name in self.functions}
        calls: list[Call] = [
            (name, p, None)
            for name in (self.functions if names is None else names)
            for p, problem in enumerate(problems)
            if names is not None or scored_by(problem, name)
        ]
        if not self.workers:
            for name, p, _ in calls:
                parts[name][p] = call_reward(name, self.functions[name], groups[p])
            return Scores(parts, 0, np.zeros(shape, bool))
        with self._scoring:
            hung = self._run(calls, groups, parts)
        lost = np.zeros(shape, bool)
        for _, p, g in hung:
            lost[p, g] = True
        scored = Counter(name for name, *_ in calls for _ in range(shape[1]))
        scored.subtract(name for name, *_ in hung)
        how = {name: text for (name, *_), text in hung.items()}
        failed = {name: "" if n else how[name] for name, n in scored.items()}
        _warn(hung, groups)
        return Scores(parts, len(hung), lost, failed)

    def submit(
        self, problems: Sequence[Record], completions: Sequence[Sequence[str]]
    ) -> Callable[[], Scores]:
        """Start the calls, in a thread, and return the function that waits for the rewards.

        That one raises what a call does.
        """
        return self._thread.submit(self, problems, completions).result

    def _run(
        self, calls: Sequence[Call], groups: Sequence[Group], parts: dict[str, np.ndarray]
    ) -> dict[tuple[str, int, int], str]:
        """Fills `parts` and returns the completions that a reward hung or died on, and how."""
        batch = Batch(calls, groups, parts)
        running: dict[Future, _Running] = {}
        done: SimpleQueue[Future] = SimpleQueue()
        try:
            while running or batch.waiting:
                free = set(self._limits.slots - {one.slot for one in running.values()})
                while batch.waiting and free:
                    call = batch.waiting.popleft()
                    if batch.wants(call):
                        one = self._schedule(call, batch.group(call), free.pop())
                        running[one.future] = one
                        one.future.add_done_callback(done.put)
                for future in _ended(done, running):
                    self._settle(running.pop(future), batch)
                for one in running.values():
                    if self._limits.overdue(one.slot, one.call[0], one.size):
                        one.future.cancel()  # which kills its process
        except BaseException:  # an error or Ctrl-C: what still waits must not run
            for future in running:
                future.cancel()
            raise
        return batch.lost

    def _schedule(self, call: Call, group: Group, slot: int) -> "_Running":
        arguments = call[0], dump_group(call[0], group), slot
        with self._lock:  # a thread must start nothing that close() has not seen
            pool = self._opened()
            if not pool.active:  # pebble gives up on a pool that lost an idle worker
                self._restarts += 1
                if self._restarts > RESTARTS:
                    raise RewardError(
                        f"the processes of the rewards {', '.join(map(repr, self.functions))} end "
                        "before they have started: one ends it when imported, or in at_start"
                    )
                self._finalizer()
                pool = self._start()
            self._limits.schedule(slot)
            future = pool.schedule(call_in_worker, arguments)
        return _Running(call, slot, len(group.completions), pool, future)

    def _settle(self, one: "_Running", batch: Batch) -> None:
        """Put the result of a call, or its failure, into the batch."""
        call, slot = one.call, one.slot
        try:
            result = one.future.result(0)
        except ProcessExpired as error:
            status = 0 if error.exitcode == CLEAN else error.exitcode
            batch.lose(call, f"killed its process (exit status {status})", hung=False)
        except (FutureTimeout, BrokenProcessPool):  # its pool gave up
            if self._limits.begun(slot):
                batch.lose(call, "lost its process", hung=False)
            else:
                batch.waiting.appendleft(call)
        except CancelledError:
            self._opened()
            had = self._limits.cut_off(slot, call[0])
            batch.lose(call, f"took more than {had}", hung=True)
        else:
            if isinstance(result, str):
                raise RewardError(result)
            self._restarts = 0
            self._limits.returned(slot, call[0])
            batch.keep(call, result)

    def _opened(self) -> ProcessPool:
        if self._pool is None:
            raise RuntimeError("the Rewarder is closed")
        return self._pool

    def _start(self) -> ProcessPool:
        pool = ProcessPool(
            self.workers,
            initializer=load_functions,
            initargs=(self._pickled, self._limits.clock),
            context=context(),
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


class Failures:
    """Which rewards have failed for every completion of how many steps in a row.

    limit  at which that ends the run
    """

    def __init__(self, limit: int):
        """None has failed yet."""
        self._limit = limit
        self._steps: dict[str, set[int]] = {}

    def note(self, scores: Scores, number: int) -> None:
        """Take the rewards of step `number`; RewardError, naming the reward, at the limit."""
        for name, how in scores.failed.items():
            self._steps[name] = self._steps.get(name, set()) | {number} if how else set()
            if len(self._steps[name]) >= self._limit:
                raise RewardError(
                    f"reward {name!r} {how} for every completion of {self._limit} steps in a row "
                    f"(optimizer.max_bad_steps={self._limit}): mend it, or raise reward_timeout"
                )


class _Running(NamedTuple):
    """A call that was given to a pool; its slot is the clock's, `size` in completions."""

    call: Call
    slot: int
    size: int
    pool: ProcessPool
    future: Future


def _ended(done: SimpleQueue, running: Mapping[Future, _Running]) -> list[Future]:
    """The next of the running calls that is over, or, after a short wait, those of a dead pool."""
    with contextlib.suppress(Empty):
        future = done.get(timeout=POLL_S)
        return [future] if future in running else []
    return [future for future, one in running.items() if not one.pool.active]


def _warn(hung: Mapping[tuple[str, int, int], str], groups: Sequence[Group]) -> None:
    """Warn, in one line a reward, of the completions that it hung or died on."""
    for name in dict.fromkeys(name for name, *_ in hung):
        first, *others = sorted(call for call in hung if call[0] == name)
        _, p, g = first
        print(
            f"warning: reward {name!r} {hung[first]} and counts as None; "
            f"prompt: {excerpt(groups[p].prompt)}; "
            f"completion: {excerpt(groups[p].completions[g])}"
            + (f" ({len(others)} more completions were lost)" if others else ""),
            file=sys.stderr,
        )


def _stop(pool: ProcessPool) -> None:
    pool.stop()
    pool.join()


def _groups(
    problems: Sequence[Record],
    completions: Sequence[Sequence[str]],
    completion_ids: Sequence[Sequence[Sequence[int]]] | None,
    prefill: Callable[[Prompt], str] | None,
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
    held = [{} if prefill is None else {"prefill": prefill(p.prompt)} for p in problems]
    return [
        Group(p.prompt, list(_trl_completions(p, group)), {**_columns(p), **before}, extras)
        for p, group, extras, before in zip(problems, completions, ids, held, strict=True)
    ]


def _columns(problem: Record) -> dict[str, object]:
    """The columns that rewards get: all except the one that chooses among them."""
    return {name: value for name, value in problem.columns.items() if name != REWARDS}


def _trl_completions(problem: Record, completions: Sequence[str]) -> Iterator[Completion]:
    """Text for a text prompt; for chat messages, a list with the assistant's message."""
    for text in completions:
        chat = [{"role": "assistant", "content": text}]
        yield text if isinstance(problem.prompt, str) else chat
