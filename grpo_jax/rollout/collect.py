"""Problems in, scored groups of completions out, on the host: one rollout of an iteration."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from grpo_jax.engines.stops import cut
from grpo_jax.tasks import Steps
from grpo_jax.tokenizers import TextTokenizer, bucket, decode, encode_prompts, prompt_ids
from grpo_jax.types import Prompts, Rollouts, on_host

SPREAD = 1e-6  # below it a group's rewards are equal, and teach nothing

# Rewards f32[P, G], their parts, how many timed out, and the steps [P][G], or None.
Scored = tuple[np.ndarray, dict[str, np.ndarray], int, list[list[Steps]] | None]


class Collected(NamedTuple):
    """A rollout on the host: problems [P], completions [P][G], rewards and parts f32[P, G], and
    steps [P][G], each completion's as its task tells them, or None."""

    problems: list[Any]
    rollouts: Rollouts
    completions: list[list[str]]
    rewards: np.ndarray
    parts: dict[str, np.ndarray]
    timeouts: int
    rounds: int
    steps: list[list[Steps]] | None = None

    @property
    def spread(self) -> np.ndarray:
        """bool[P]: whether a group's rewards differ, those of its steps among them."""
        return has_spread(self.rewards, self.steps)


def encode_batch(
    tokenizer: TextTokenizer, problems: Sequence[Any], longest: int, multiple: int
) -> Prompts:
    """Left-padded Prompts [P, S], S the bucket of the longest prompt.

    ValueError, naming the prompt, where one has more than `longest` tokens.
    """
    lengths = [len(prompt_ids(tokenizer, p.prompt)) for p in problems]
    S = min(bucket(max(lengths), multiple), longest) if max(lengths) <= longest else longest
    tokens, mask = map(on_host, encode_prompts(tokenizer, problems, S))
    return Prompts(tokens=tokens, mask=mask)


def texts(
    tokenizer: TextTokenizer, tokens: np.ndarray, mask: np.ndarray, stop: Sequence[str] = ()
) -> list[list[str]]:
    """Completions as text, [P][G], of tokens i32[P, G, T] and mask bool[P, G, T].

    One that ends with a stop string ends right after it, whatever more its last token says.
    """
    return [
        [cut(decode(tokenizer, row[kept]), stop) for row, kept in zip(*group, strict=True)]
        for group in zip(tokens, mask, strict=True)
    ]


def collect(
    draw: Callable[[], list[Any]],
    sample: Callable[[Sequence[Any], int], tuple[Rollouts, list[list[str]]]],
    score: Callable[[Sequence[Any], list[list[str]]], Scored],
    rounds: int,
) -> Collected:
    """Sample and score one batch of problems; with `rounds`, until all groups have spread.

    draw    the next P problems
    sample  (problems, round) -> Rollouts and texts
    score   (problems, completions) -> Scored

    Dynamic sampling (DAPO, 2503.14476): groups whose rewards are all equal are replaced by groups
    of new problems, at most `rounds` times; what has no spread then stays, with advantage 0.
    """
    batch = _round(draw(), 0, sample, score)
    for extra in range(1, rounds + 1):
        dull = ~batch.spread
        if not dull.any():
            break
        new = _round(draw(), extra, sample, score)
        lively = new.spread
        slots, fills = np.flatnonzero(dull), np.flatnonzero(lively)
        n = min(len(slots), len(fills))
        batch = _replace(batch, new, slots[:n], fills[:n])
    return batch


def has_spread(rewards: np.ndarray, steps: list[list[Steps]] | None = None) -> np.ndarray:
    """bool[P]: whether a group's rewards f32[P, G], NaN apart, differ.

    With steps [P][G], whether any of these do, the outcome being one: without spread, the advantage
    of process supervision is 0, as the others are. Those of an abstained completion do not count.
    """
    if steps is not None:
        rewards = _with_steps(rewards, steps)
    low = np.where(np.isnan(rewards), np.inf, rewards).min(-1)
    high = np.where(np.isnan(rewards), -np.inf, rewards).max(-1)
    return high - low > SPREAD


def _with_steps(rewards: np.ndarray, steps: list[list[Steps]]) -> np.ndarray:
    """Rewards f32[P, G] beside those of the steps, f32[P, N], NaN where a group has fewer."""
    rows = []
    for group, judged in zip(rewards, steps, strict=True):
        scored = [s for s, r in zip(judged, group, strict=True) if not np.isnan(r)]
        compared = scored if len(scored) > 1 else []  # one alone has nothing to be compared with
        rows.append([*group, *(reward for one in compared for _, reward in one)])
    return np.array(list(itertools.zip_longest(*rows, fillvalue=np.nan))).T


def _round(problems, index, sample, score) -> Collected:
    rollouts, completions = sample(problems, index)
    rewards, parts, timeouts, steps = score(problems, completions)
    problems = list(problems)
    return Collected(problems, rollouts, completions, rewards, parts, timeouts, index, steps)


def _replace(old: Collected, new: Collected, slots: np.ndarray, fills: np.ndarray) -> Collected:
    """`old` with its groups at `slots` replaced by those of `new` at `fills`."""
    S = max(c.rollouts.prompts.tokens.shape[1] for c in (old, new))

    def put(a, b):
        a = np.array(a)
        a[slots] = np.asarray(b)[fills]
        return a

    def put_list(a, b):
        chosen = dict(zip(slots, fills, strict=True))
        return [b[chosen[i]] if i in chosen else x for i, x in enumerate(a)]

    return Collected(
        put_list(old.problems, new.problems),
        jax.tree.map(put, _padded(old.rollouts, S), _padded(new.rollouts, S)),
        put_list(old.completions, new.completions),
        put(old.rewards, new.rewards),
        {name: put(values, new.parts[name]) for name, values in old.parts.items()},
        old.timeouts + new.timeouts,
        new.rounds,
        old.steps and put_list(old.steps, new.steps),
    )


def _padded(rollouts: Rollouts, S: int) -> Rollouts:
    """Prompts padded on the left to S tokens."""
    width = ((0, 0), (S - rollouts.prompts.tokens.shape[1], 0))
    return rollouts.replace(prompts=jax.tree.map(lambda x: np.pad(x, width), rollouts.prompts))
