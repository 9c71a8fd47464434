"""Problems in, scored groups of completions out, on the host: one rollout of an iteration."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from grpo_jax.tokenizers import TextTokenizer, bucket, decode, encode_prompts, prompt_ids
from grpo_jax.types import Prompts, Rollouts

SPREAD = 1e-6  # below it a group's rewards are equal, and teach nothing


class Collected(NamedTuple):
    """A rollout on the host: problems [P], completions [P][G], rewards and parts f32[P, G]."""

    problems: list[Any]
    rollouts: Rollouts
    completions: list[list[str]]
    rewards: np.ndarray
    parts: dict[str, np.ndarray]
    timeouts: int
    rounds: int


def encode_batch(
    tokenizer: TextTokenizer, problems: Sequence[Any], longest: int, multiple: int
) -> Prompts:
    """Left-padded Prompts [P, S], S the bucket of the longest prompt.

    ValueError, naming the prompt, where one has more than `longest` tokens.
    """
    lengths = [len(prompt_ids(tokenizer, p.prompt)) for p in problems]
    S = min(bucket(max(lengths), multiple), longest) if max(lengths) <= longest else longest
    arrays: Any = encode_prompts(tokenizer, problems, S)
    return Prompts(*arrays)


def texts(tokenizer: TextTokenizer, tokens: np.ndarray, mask: np.ndarray) -> list[list[str]]:
    """Completions as text, [P][G], of tokens i32[P, G, T] and mask bool[P, G, T]."""
    return [
        [decode(tokenizer, row[kept]) for row, kept in zip(*group, strict=True)]
        for group in zip(tokens, mask, strict=True)
    ]


def collect(
    draw: Callable[[], list[Any]],
    sample: Callable[[Sequence[Any], int], tuple[Rollouts, list[list[str]]]],
    score: Callable[[Sequence[Any], list[list[str]]], tuple[np.ndarray, dict, int]],
    rounds: int,
) -> Collected:
    """Sample and score one batch of problems; with `rounds`, until all groups have spread.

    draw    the next P problems
    sample  (problems, round) -> Rollouts and texts
    score   (problems, completions) -> rewards f32[P, G], their parts, and how many timed out

    Dynamic sampling (DAPO, 2503.14476): groups whose rewards are all equal are replaced by groups
    of new problems, at most `rounds` times; what has no spread then stays, with advantage 0.
    """
    batch = _round(draw(), 0, sample, score)
    for extra in range(1, rounds + 1):
        dull = ~has_spread(batch.rewards)
        if not dull.any():
            break
        new = _round(draw(), extra, sample, score)
        lively = has_spread(new.rewards)
        slots, fills = np.flatnonzero(dull), np.flatnonzero(lively)
        n = min(len(slots), len(fills))
        batch = _replace(batch, new, slots[:n], fills[:n])
    return batch


def has_spread(rewards: np.ndarray) -> np.ndarray:
    """bool[P]: whether a group's rewards f32[P, G], NaN apart, differ."""
    low = np.where(np.isnan(rewards), np.inf, rewards).min(-1)
    high = np.where(np.isnan(rewards), -np.inf, rewards).max(-1)
    return high - low > SPREAD


def _round(problems, index, sample, score) -> Collected:
    rollouts, completions = sample(problems, index)
    rewards, parts, timeouts = score(problems, completions)
    return Collected(list(problems), rollouts, completions, rewards, parts, timeouts, index)


def _replace(old: Collected, new: Collected, slots: np.ndarray, fills: np.ndarray) -> Collected:
    """`old` with its groups at `slots` replaced by those of `new` at `fills`."""
    S = max(c.rollouts.prompts.tokens.shape[1] for c in (old, new))

    def put(a, b):
        a = np.array(a)
        a[slots] = np.asarray(b)[fills]
        return a

    rollouts = jax.tree.map(put, _padded(old.rollouts, S), _padded(new.rollouts, S))
    problems, completions = list(old.problems), list(old.completions)
    for slot, fill in zip(slots, fills, strict=True):
        problems[slot], completions[slot] = new.problems[fill], new.completions[fill]
    parts = {name: put(values, new.parts[name]) for name, values in old.parts.items()}
    rewards, timeouts = put(old.rewards, new.rewards), old.timeouts + new.timeouts
    return Collected(problems, rollouts, completions, rewards, parts, timeouts, new.rounds)


def _padded(rollouts: Rollouts, S: int) -> Rollouts:
    """Prompts padded on the left to S tokens."""
    width = ((0, 0), (S - rollouts.prompts.tokens.shape[1], 0))
    return rollouts.replace(prompts=jax.tree.map(lambda x: np.pad(x, width), rollouts.prompts))
