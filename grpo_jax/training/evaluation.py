"""Held-out evaluation: greedy accuracy, pass@k and maj@k, each with a 95% interval."""

import itertools
import math
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from grpo_jax.console.progress import doing
from grpo_jax.engines.base import completion_keys
from grpo_jax.rewards.evaluate import Rewarder, Scores
from grpo_jax.rewards.numbers import vote
from grpo_jax.rollout.play import play
from grpo_jax.statistics import maj_at_k, mean_interval, pass_at_k, wilson_interval
from grpo_jax.tasks import Problem, Source
from grpo_jax.tasks.mixture import KIND
from grpo_jax.tokenizers import prefill
from grpo_jax.training.experiment import Answering, Experiment
from grpo_jax.types import Params

ROWS = 512  # completions decoded together


class HeldOut(NamedTuple):
    """How a policy does on held-out problems.

    metrics  as in eval.jsonl
    singly   of each problem bool "accuracy", whether its greedy completion is right, and with
             samples f "pass@1", the share of them that is
    """

    metrics: dict[str, float]
    singly: dict[str, np.ndarray]


def evaluate_policy(
    ex: Experiment,
    params: Params,
    rewarder: Rewarder,
    problems: int,
    samples: int = 0,
    asked: str = "eval.problems",
) -> HeldOut:
    """Metrics of the policy on held-out problems, by the task's own accuracy.

    problems  how many, from the first; at most as many as are held out, over-long ones excepted
              where they are dropped
    samples   completions a problem for pass@k and maj@k, k = 1, 2, 4 .. samples; 0 = greedy only
    asked     what says how many

    accuracy and its interval (accuracy/low, accuracy/high; Wilson) count greedy completions that
    are right, and <kind>/accuracy those of each kind of a mixture, both of the n problems on which
    the task's accuracy does not abstain; pass@k (2107.03374) and maj@k are means over these with
    Student's t intervals.
    """
    heldout = ex.task.heldout
    chosen = first_problems(heldout, range(len(heldout)), problems, ex.fits, asked=asked)
    judge = partial(rewarder, names=("accuracy",))
    greedy = attempts(params, judge, chosen, 1, ex.answering(0.0))
    judged = greedy.judged[:, 0]
    singly = {"accuracy": greedy.right[judged, 0]}
    result = greedy_metrics(chosen, greedy)
    if samples and judged.any():
        e = ex.config.eval
        how = ex.answering(e.temperature, e.top_p)
        sampled = attempts(params, judge, chosen, samples, how)
        answers = [a for a, counts in zip(sampled.answers, judged, strict=True) if counts]
        result |= sampled_metrics(answers, sampled.right[judged])
        singly["pass@1"] = sampled.right[judged].mean(-1)
    return HeldOut(result, singly)


def greedy_metrics(problems: Sequence[Problem], greedy: "Attempts") -> dict[str, float]:
    """Accuracy, of each kind too, and lengths of one attempt at each problem."""
    judged = greedy.judged[:, 0]
    n, hits = int(judged.sum()), int(greedy.right.sum())
    low, high = wilson_interval(hits, n) if n else (math.nan, math.nan)
    result = {
        "accuracy": hits / n if n else math.nan,
        "accuracy/low": float(low),
        "accuracy/high": float(high),
        "n": n,
        "completions/mean_length": float(greedy.lengths.mean()),
        "completions/finished": float(greedy.finished.mean()),
    }
    kinds = np.array([str(p.columns.get(KIND, "")) for p in problems])
    for kind in sorted(set(kinds[judged]) - {""}):
        result[f"{kind}/accuracy"] = float(greedy.right[judged & (kinds == kind)].mean())
    return result


def first_problems(
    source: Source,
    order: Iterable[int],
    n: int,
    fits: Callable[[Problem], bool],
    kind: str = "held-out",
    asked: str = "eval.problems",
) -> list[Problem]:
    """The first n problems of a source, in this order, that fit; ValueError for none.

    Where there are fewer, those, and a warning once, which says what `kind` of problems they are,
    and what `asked` for n.
    """
    fitting = filter(fits, map(source.__getitem__, order))
    chosen = list(itertools.islice(fitting, n))
    if not chosen:
        raise ValueError(
            f"config.prompt_length drops every problem of {len(source)}; valid: what holds some"
        )
    if len(chosen) < n:
        _warn_of_fewer(n, len(chosen), kind, asked)
    return chosen


@cache  # each is said once a process
def _warn_of_fewer(n: int, there: int, kind: str, asked: str) -> None:
    print(
        f"warning: {n} {kind} problems are asked for ({asked}), but only {there} are there and "
        f"fit; all {there} are taken",
        file=sys.stderr,
    )


def sampled_metrics(
    answers: Sequence[Sequence[Hashable]], right: Bool[np.ndarray, "P n"]
) -> dict[str, float]:
    """pass@k and maj@k for k = 1, 2, 4 .. of answers [P][n] marked right bool[P, n]."""
    n = right.shape[1]
    result: dict[str, float] = {}
    for k in [2**i for i in range(n.bit_length())]:
        measures = {"pass": pass_at_k(n, right.sum(1), k)}
        if k > 2:  # the majority of two is either one
            # A reward may judge more than the answer: an answer judged both ways counts as two.
            marked = [list(zip(a, r, strict=True)) for a, r in zip(answers, right, strict=True)]
            measures["maj"] = np.array(
                [maj_at_k(m, r, k) for m, r in zip(marked, right, strict=True)]
            )
        for name, values in measures.items():
            mean, low, high = mean_interval(values)
            result |= {
                f"{name}@{k}": mean,
                f"{name}@{k}/low": max(low, 0.0),
                f"{name}@{k}/high": min(high, 1.0),
            }
    return result


class Attempts(NamedTuple):
    """`group` attempts at each of n problems: completions and answers [n][G], the rest [n, G].

    parts are the rewards by name, NaN where one abstains.
    """

    completions: list[list[str]]
    answers: list[list[Any]]
    parts: dict[str, np.ndarray]
    lengths: np.ndarray
    finished: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Whether an attempt is right, its accuracy 1, bool[n, G]."""
        return self.parts["accuracy"] >= 1.0

    @property
    def judged(self) -> np.ndarray:
        """Whether the task's accuracy does not abstain, bool[n, G]."""
        return ~np.isnan(self.parts["accuracy"])


def attempts(
    params: Params,
    rewarder: Callable[..., Scores],
    problems: list[Problem],
    group: int,
    how: Answering,
    first: int = 0,
) -> Attempts:
    """Sample and grade; `first` is the first problem's place in a longer list, for its noise."""
    size = max(1, min(len(problems), ROWS // group))
    rows = how.player.mesh.shape["data"] * how.player.mesh.shape["fsdp"]
    size = -(-size // rows) * rows
    completions, lengths, finished = [], [], []
    for start in range(0, len(problems), size):
        chunk = problems[start : start + size]
        # The last batch is filled up, so that no further program is compiled.
        filled = chunk + [chunk[0]] * (size - len(chunk))
        keys = completion_keys(how.rng, 0, first + start + np.arange(size), group)
        plain = len(chunk) == len(problems) and group == 1  # who asked for it has said so
        what = _answering(start, len(chunk), len(problems), group)
        with doing(what, log_after_s=5.0 if plain else None):
            played = play(how.player, params, filled, keys, how.sampling)
        out = played.rollouts
        completions += played.completions[: len(chunk)]
        lengths.append(out.mask.sum(-1)[: len(chunk)])
        finished.append(out.finished[: len(chunk)])
    with doing(f"judging {len(problems) * group} completions"):
        parts = rewarder(problems, completions).parts
    held = [prefill(how.player.tokenizer, p.prompt) for p in problems]
    answers = [
        [vote(before + text) for text in group]
        for before, group in zip(held, completions, strict=True)
    ]
    counted = map(np.concatenate, (lengths, finished))
    return Attempts(completions, answers, parts, *counted)


def _answering(start: int, n: int, of: int, group: int) -> str:
    """The message of what a batch of attempts is doing."""
    which = f"{of} problems" if n == of else f"problems {start + 1} to {start + n} of {of}"
    return f"answering {which}" + (f", {group} times each" if group > 1 else "")
