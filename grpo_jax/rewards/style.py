"""Rewards of form: repetition within a completion, and its length beside others."""

import re
from collections.abc import Sequence

from grpo_jax.rewards.text import Completion, Reward, completion_text
from grpo_jax.rewards.turn import Prompt

EAST_ASIAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # kana, Han, Hangul
_WORD = re.compile(f"[{EAST_ASIAN}]|[^\\W{EAST_ASIAN}]+")


def repetition(n: int = 4) -> Reward:
    """A penalty in [-1, 0]: minus the share of a completion's n-grams that were there before.

    Of words, whatever their case; a Chinese, Japanese or Korean character is a word. 0 for a
    completion of fewer than n + 1 words.
    """

    def repeated(
        prompts: Sequence[Prompt], completions: Sequence[Completion], **columns: object
    ) -> list[float]:
        return [-_share(_WORD.findall(completion_text(c).lower()), n) for c in completions]

    return repeated


def length(
    prompts: Sequence[Prompt], completions: Sequence[Completion], **columns: object
) -> list[float]:
    """A penalty in [-1, 0] of one prompt's completions: 0 for the shortest, -1 for the longest.

    -(len - min) / (max - min), in characters, right or wrong: Kimi k1.5's length reward
    (2501.12599, 2.3.3) less a constant, which advantages within a group do not see. 0 where all are
    as long. DAPO's soft limit in tokens is Algorithm.overlong_cache.
    """
    sizes = [len(completion_text(c)) for c in completions]
    least, spread = min(sizes, default=0), max(sizes, default=0) - min(sizes, default=0)
    return [-(size - least) / max(spread, 1) for size in sizes]


def _share(words: list[str], n: int) -> float:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
