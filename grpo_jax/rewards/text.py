"""Rewards that read a completion's text: the answer, and the think/answer format.

A reward has TRL's signature, `f(prompts, completions, **columns) -> list of float or None`: every
argument is a list with one value per completion, and None abstains. A completion is text, or chat
messages where the prompt is.
"""

from collections.abc import Callable, Sequence

from grpo_jax.rewards.turn import Prompt, of_turn

Reward = Callable[..., Sequence[float | None]]
Completion = str | list[dict[str, str]]

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def completion_text(completion: Completion) -> str:
    """A completion's text; of chat messages, their contents joined."""
    if isinstance(completion, str):
        return completion
    return "".join(message["content"] for message in completion)


def extract_answer(completion: Completion) -> str:
    """What the last <answer>…</answer> holds, else the whole completion; stripped."""
    text = completion_text(completion)
    held = _held(text)
    return (text if held is None else held).strip()


def final_answer(completion: Completion) -> str | None:
    """The answer that a completion ends in, without its thoughts; None where that is nothing.

    Of what follows the last </think>, what the last <answer>…</answer> holds, else all; without a
    </think> only what <answer>…</answer> holds. Stripped.
    """
    _, thought, after = completion_text(completion).rpartition("</think>")
    held = _held(after)
    return (after if held is None and thought else held or "").strip() or None


def _held(text: str) -> str | None:
    opening, closing = "<answer>", "</answer>"
    end = text.rfind(closing)
    start = text.rfind(opening, 0, max(end, 0))
    return text[start + len(opening) : end] if start >= 0 else None


@of_turn
def exact_answer(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    answer: Sequence[object],
    **columns: object,
) -> list[float | None]:
    """1.0 where the extracted answer is the column `answer`, character by character, else 0.0.

    Abstains (None) where the column holds None.
    """
    return [
        None if a is None else float(extract_answer(c) == str(a).strip())
        for c, a in zip(completions, answer, strict=True)
    ]
