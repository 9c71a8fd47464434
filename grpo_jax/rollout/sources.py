"""When a batch is made: one after another, or while the one before is graded."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Array, Key

from grpo_jax.algorithms import CORRECTIONS, Algorithm
from grpo_jax.console.progress import doing
from grpo_jax.engines.base import completion_keys
from grpo_jax.engines.filters import Sampling
from grpo_jax.files import Json, JsonMapping
from grpo_jax.registry import find, make
from grpo_jax.rollout.grade import Graded, Grader, grade
from grpo_jax.rollout.play import Episodes, Player, encode, finish, generate
from grpo_jax.tasks import Problem
from grpo_jax.tasks.loader import Stream
from grpo_jax.types import Params, Prompts, Rollouts

_EXTRA = "extra."  # what the names of an engine's own arrays begin with in a checkpoint
LONG_S = 5.0  # a log has a line a step, and more only where a step takes long


class RolloutSource(Protocol):
    """Makes the batches that steps learn from.

    A new one is a file and a line in SOURCES, or a file anywhere that is named by its import path.
    `lag` declares how many updates old a batch is when it is learnt from.

    Its state is JSON-able except for "arrays", if any: the rollouts that wait between steps, as
    NumPy's arrays by name, which a checkpoint keeps as a separate item.
    """

    lag: int = 0

    def next(self, policy: Params, number: int) -> Graded:
        """The batch of step `number`, given the policy as the step finds it."""

    def get_state(self) -> Json:
        """Its position. It says "final": True where the run's last step left no next batch behind,
        so that further steps would not be those of a run that had them from the start."""

    def set_state(self, state: JsonMapping) -> None:
        """Continue from a position."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Making:
    """What every source makes batches with.

    group   completions of each problem
    rounds  of dynamic sampling, at most
    rng     the run's key
    last    the run's last step
    """

    player: Player
    grader: Grader
    stream: Stream
    sampling: Sampling
    group: int
    rounds: int
    rng: Key[Array, ""]
    last: int


class InTurn(RolloutSource):
    """Each step samples its batch, and grades it, before it learns."""

    def __init__(self, making: Making):
        """Nothing waits."""
        self._making = making

    def next(self, policy: Params, number: int) -> Graded:
        """As `collect` makes it."""
        m = self._making

        def make(problems: list[Problem], round_: int) -> Graded:
            rollouts = _sampled(m, policy, encode(m.player, problems), number, round_)
            return _graded(grade(m.grader, finish(m.player, problems, rollouts), number), number)

        return collect(lambda: next(m.stream), make, m.rounds)

    def get_state(self) -> Json:
        """The stream's position."""
        return self._making.stream.get_state()

    def set_state(self, state: JsonMapping) -> None:
        """Continue from it."""
        self._making.stream.set_state(state)


class Overlapped(InTurn):
    """Samples the next step's batch while this one's, sampled a step ago, is graded.

    The first step samples its own. The last samples no other, and keeps its own, so that all
    checkpoints are of one shape.
    """

    lag = 1

    def __init__(self, making: Making):
        """Nothing waits yet."""
        super().__init__(making)
        self._pending: Rollouts | None = None
        self._final = False

    def next(self, policy: Params, number: int) -> Graded:
        """The batch that waits, graded while the next one is sampled by this step's policy."""
        m = self._making
        problems = next(m.stream)
        prompts = encode(m.player, problems)
        rollouts = self._pending
        if rollouts is None:
            rollouts = _sampled(m, policy, prompts, number)
        rollouts = rollouts.replace(prompts=prompts)
        wait = grade(m.grader, finish(m.player, problems, rollouts), number)
        self._final = number == m.last
        if self._final:
            self._pending = rollouts
        else:
            self._pending = _sampled(m, policy, encode(m.player, m.stream.peek()), number + 1)
        return _graded(wait, number)

    def get_state(self) -> Json:
        """The stream's position, and the rollouts that wait, less their prompts, which the stream
        comes to again."""
        fields = {} if self._pending is None else dict(vars(self._pending))
        fields |= {_EXTRA + k: x for k, x in fields.pop("extras", {}).items()}
        kept = {k: np.asarray(x) for k, x in fields.items() if k != "prompts"}
        return super().get_state() | {"arrays": kept, "final": self._final}

    def set_state(self, state: JsonMapping) -> None:
        """Continue from them."""
        super().set_state(state)
        none: Any = None
        kept, self._final = state.get("arrays"), state.get("final", False)
        self._pending = None
        if kept:
            extras = {k.removeprefix(_EXTRA): x for k, x in kept.items() if k.startswith(_EXTRA)}
            others = {k: x for k, x in kept.items() if not k.startswith(_EXTRA)}
            self._pending = Rollouts(prompts=none, extras=extras, **others)


SOURCES: dict[str, Callable[[Making], RolloutSource]] = {
    "in_turn": InTurn,
    "overlapped": Overlapped,
}


def make_source(name: str, making: Making) -> RolloutSource:
    """The source of a name or import path; ValueError for an unknown one."""
    return make("source", name, SOURCES, ("next", "get_state", "set_state"), making)


def check_source(name: str, algorithm: Algorithm) -> None:
    """ValueError for an unknown source, or for an algorithm that cannot learn from its batches."""
    lag = getattr(find("source", name, SOURCES), "lag", 0)
    if lag and algorithm.tis_mode == "none":
        raise ValueError(
            f"source {name!r} gives batches that are old when they are learnt from (updates: "
            f"{lag}), which needs a weight: config.algorithm.tis_mode='none'; valid: "
            f"{', '.join(map(repr, CORRECTIONS))}"
        )
    if lag and (rounds := algorithm.dynamic_sampling_rounds):
        raise ValueError(
            f"source {name!r} samples a batch before it is known which groups of the last have "
            f"spread: config.algorithm.dynamic_sampling_rounds={rounds}; valid: 0"
        )


def _sampled(m: Making, policy: Params, prompts: Prompts, number: int, round_: int = 0) -> Rollouts:
    P = len(prompts.tokens)
    places = round_ * P + np.arange(P)
    with doing(f"sampling for step {number}", log_after_s=LONG_S):
        keys = completion_keys(m.rng, number, places, m.group)
        return generate(m.player, policy, prompts, keys, m.sampling)


def _graded(wait: Callable[[], Graded], number: int) -> Graded:
    began = time.monotonic()
    with doing(f"grading step {number}", log_after_s=LONG_S):
        graded = wait()
    return dataclasses.replace(graded, waited=time.monotonic() - began)


def collect(
    draw: Callable[[], list[Problem]],
    make: Callable[[list[Problem], int], Graded],
    rounds: int,
) -> Graded:
    """One batch of problems; with `rounds`, until all groups have spread.

    draw  the next P problems
    make  (problems, round) -> Graded

    Dynamic sampling (DAPO, 2503.14476): groups whose rewards are all equal are replaced by groups
    of new problems, at most `rounds` times; what has no spread then stays, with advantage 0.
    """
    batch = make(draw(), 0)
    for extra in range(1, rounds + 1):
        dull = ~batch.spread
        if not dull.any():
            break
        new = make(draw(), extra)
        lively = new.spread
        slots, fills = np.flatnonzero(dull), np.flatnonzero(lively)
        n = min(len(slots), len(fills))
        batch = _replace(batch, new, slots[:n], fills[:n], extra)
    return batch


def _replace(old: Graded, new: Graded, slots: np.ndarray, fills: np.ndarray, rounds: int) -> Graded:
    """`old` with its groups at `slots` replaced by those of `new` at `fills`."""
    a, b = old.episodes, new.episodes
    S = max(e.rollouts.prompts.tokens.shape[1] for e in (a, b))

    def put(x, y):
        x = np.array(x)
        x[slots] = np.asarray(y)[fills]
        return x

    def put_list(x, y):
        chosen = dict(zip(slots, fills, strict=True))
        return [y[chosen[i]] if i in chosen else one for i, one in enumerate(x)]

    return Graded(
        episodes=Episodes(
            problems=put_list(a.problems, b.problems),
            rollouts=jax.tree.map(put, _padded(a.rollouts, S), _padded(b.rollouts, S)),
            completions=put_list(a.completions, b.completions),
            measure=a.measure,
        ),
        rewards=put(old.rewards, new.rewards),
        parts={name: put(values, new.parts[name]) for name, values in old.parts.items()},
        timeouts=old.timeouts + new.timeouts,
        steps=old.steps and put_list(old.steps, new.steps),
        rounds=rounds,
        waited=old.waited + new.waited,
    )


def _padded(rollouts: Rollouts, S: int) -> Rollouts:
    """Prompts padded on the left to S tokens."""
    width = ((0, 0), (S - rollouts.prompts.tokens.shape[1], 0))
    return rollouts.replace(prompts=jax.tree.map(lambda x: np.pad(x, width), rollouts.prompts))
