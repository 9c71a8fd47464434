"""Several tasks as one, for a policy that learns them together."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from grpo_jax.rewards.call import AT_START, accepted
from grpo_jax.rewards.evaluate import REWARDS, are_names
from grpo_jax.rewards.text import Completion, Reward
from grpo_jax.tasks.problem import Options, Problem, Prompt, Source, Task, judges_steps, listed

T = TypeVar("T")

MOST = 10_000  # problems of a part in one round
KIND = "kind"  # the column that says which part a problem is of


class ByKind:
    """The accuracy of a mixture: each problem is judged by its part's, in `parts` by name."""

    def __init__(self, parts: Mapping[str, Reward]):
        """Take the accuracy of each part."""
        self.parts = parts

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        kind: Sequence[str],
        **columns: object,
    ) -> Sequence[float | None]:
        """Ask the accuracy of the problem's part, which gets the columns that it takes."""
        (one,) = set(kind)  # a reward is asked about one problem at a time
        given = {"prompts": prompts, "completions": completions, **columns}
        return self.parts[one](**accepted(self.parts[one], given))


def judge(accuracy: Reward, problem: Problem) -> Reward:
    """The accuracy that judges a problem: a mixture's is that of the problem's part."""
    return accuracy.parts[problem.columns[KIND]] if isinstance(accuracy, ByKind) else accuracy


class Mixed:
    """Problems of several sources, each as often as its share; short ones begin anew."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        shares: Mapping[str, int],
        marks: Mapping[str, Mapping[str, object]] | None = None,
    ):
        """Take the sources of parts by name, how many problems of each one round has, and the
        columns to add to them: their `kind` by default.
        """
        self.sources, self.shares = sources, shares
        self.marks = marks or {kind: {KIND: kind} for kind in sources}
        self.turns = [(kind, i) for kind, share in shares.items() for i in range(share)]
        self.rounds = max(-(-len(s) // shares[kind]) for kind, s in sources.items() if shares[kind])

    def __len__(self) -> int:
        return self.rounds * len(self.turns)

    def __getitem__(self, index: int) -> Problem:
        if not 0 <= index < len(self):
            raise IndexError(f"problem {index} of {len(self)}")
        number, place = divmod(index, len(self.turns))
        kind, i = self.turns[place]
        source = self.sources[kind]
        problem = source[(number * self.shares[kind] + i) % len(source)]
        return _marked(problem, self.marks[kind])

    def listed(self) -> Iterator[Problem]:
        """Those that are there already (see `problem.listed`)."""
        for kind, source in self.sources.items():
            if self.shares[kind]:
                yield from (_marked(problem, self.marks[kind]) for problem in listed(source))


@judges_steps
def mixture(parts: Mapping[str, Options]) -> Task:
    """The problems of several tasks, alternating, each with its part's name in the column `kind`.

    parts  by name, the options of each: its task's `name` (else the part's own name is meant),
           its `share` of problems (1 by default; one of 0 is only held out), the `rewards` that
           apply to it (all by default), and what the task takes

    Each part judges and solves its own problems. Held out are all parts' problems, alternating.
    ValueError for
    fewer than two parts, for a negative share or nothing but 0; the parts' own errors name what
    they do.
    """
    from grpo_jax.tasks import make_task

    if len(parts) < 2:
        raise ValueError(f"parts={list(parts)}: valid: two tasks or more, by name")
    for kind, given in parts.items():
        if not isinstance(given, Mapping):
            raise ValueError(f"parts.{kind}={given!r}: valid: the options of the part's task")
    options = {kind: {"name": kind, "share": 1, **given} for kind, given in parts.items()}
    shares = {kind: own.pop("share") for kind, own in options.items()}
    for kind, share in shares.items():
        if not isinstance(share, int) or not 0 <= share <= MOST:
            raise ValueError(f"parts.{kind}.share={share!r}: valid: an integer, 0 to {MOST}")
    if not any(shares.values()):
        raise ValueError("parts: every share is 0; valid: one above 0")
    marks = {kind: _mark(kind, own) for kind, own in options.items()}
    tasks = {kind: make_task(**own) for kind, own in options.items()}

    accuracy = ByKind({kind: task.accuracy for kind, task in tasks.items()})
    loads = [getattr(t.accuracy, AT_START) for t in tasks.values() if hasattr(t.accuracy, AT_START)]
    if loads:
        setattr(accuracy, AT_START, lambda: [load() for load in loads])
    return Task(
        "mixture",
        Mixed({kind: task.train for kind, task in tasks.items()}, shares, marks),
        _in_turn(tasks, marks),
        accuracy,
        _each({kind: task.solve for kind, task in tasks.items()}),
        _all_symbols(tasks.values()),
        sum(task.overlap for task in tasks.values()),
        _each({kind: task.steps for kind, task in tasks.items()}),
        tuple(dict.fromkeys(file for task in tasks.values() for file in task.files)),
    )


def _mark(kind: str, own: dict[str, object]) -> dict[str, object]:
    """The columns of a part's problems; takes the part's `rewards` out of its options."""
    if REWARDS not in own:
        return {KIND: kind}
    if not are_names(names := own.pop(REWARDS)):
        raise ValueError(f"parts.{kind}.rewards={names!r}: valid: a list of names")
    return {KIND: kind, REWARDS: list(names)}


def _in_turn(tasks: Mapping[str, Task], marks: Mapping[str, Mapping[str, object]]) -> list[Problem]:
    """The held-out problems of all parts, alternating."""
    heldout = [
        [_marked(task.heldout[i], marks[kind]) for i in range(len(task.heldout))]
        for kind, task in tasks.items()
    ]
    return [p for row in itertools.zip_longest(*heldout) for p in row if p is not None]


def _each(functions: Mapping[str, Callable[..., T] | None]) -> Callable[..., T] | None:
    """The function of the part that a problem is of; None where a part has none."""
    own = {kind: function for kind, function in functions.items() if function is not None}
    if len(own) < len(functions):
        return None
    return lambda problem, *rest: own[problem.columns[KIND]](problem, *rest)


def _all_symbols(tasks: Iterable[Task]) -> tuple[str, ...] | None:
    symbols = [task.symbols for task in tasks]
    known = [s for s in symbols if s is not None]
    return tuple(dict.fromkeys(itertools.chain(*known))) if len(known) == len(symbols) else None


def _marked(problem: Problem, columns: Mapping[str, object]) -> Problem:
    return dataclasses.replace(problem, columns={**problem.columns, **columns})
