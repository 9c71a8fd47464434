"""The think/answer format that DeepSeek-R1-Zero is rewarded for (2501.12948, 2.2.2)."""

import re
from collections.abc import Sequence

from grpo_jax.rewards.text import TAGS, Completion, completion_text
from grpo_jax.rewards.turn import Prompt, prefills

_FORMAT = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)


def format_tags(
    prompts: Sequence[Prompt] | None,
    completions: Sequence[Completion],
    prefill: Sequence[str] | None = None,
    **columns: object,
) -> list[float]:
    """1.0 where a turn is <think>…</think><answer>…</answer>, else 0.0 (DeepSeek-R1).

    Each tag occurs once, in that order, and only whitespace stands outside the pairs. The turn
    begins with <think> where the prompt opens it (`turn.written`, or the column `prefill`); after
    an empty thought, which a chat template writes for no thinking, only <answer>…</answer> is left.
    """
    held = prefills(prompts, completions, prefill)
    turns = [
        (before if any(tag in before for tag in TAGS) else "") + completion_text(completion)
        for before, completion in zip(held, completions, strict=True)
    ]
    return [float(_well_formed(turn)) for turn in turns]


def _well_formed(text: str) -> bool:
    return all(text.count(tag) == 1 for tag in TAGS) and _FORMAT.fullmatch(text) is not None
