"""Rewards that read a completion's text: the answer, and the think/answer format.

A reward has TRL's signature, `f(prompts, completions, **columns) -> list of float or None`: every
argument is a list with one value per completion, and None abstains. A completion is text, or chat
messages where the prompt is.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from grpo_jax.rewards.turn import of_turn

Reward = Callable[..., Sequence[float | None]]
Completion = str | list[dict[str, str]]

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_BRACE = re.compile(r"(?P<opening>(?:\\(?:boxed|fbox)\s*)?\{)|\\.|(?P<closing>\})", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s+([^{}$\s][^{}$\n]*)(?=\$)")
_ALONE = re.compile(r"\(?([A-Z])\)?[.:]?")
_OPENING = re.compile(r"\(?([A-Z])\)?(?![\w'])")
_SAID = re.compile(r"\b[Aa]nswer(?: is|:)\s*\(?([A-Z])\)?(?![\w'])")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


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
    """What a completion tells its reader, thoughts left out; None where that is nothing.

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


def extract_boxed(text: str) -> str | None:
    r"""What the last \boxed{…} with balanced braces holds, stripped; None where there is none.

    \fbox{5} and "$\boxed 5$", which MATH's solutions have too, are the same.
    """
    text = _BARE_BOX.sub(r"\\boxed{\1}", text)
    opened: list[tuple[bool, int]] = []  # of each open brace: whether of a box, and its content
    start, boxed = -1, None
    for token in _BRACE.finditer(text):
        if token["opening"]:
            opened.append((token["opening"] != "{", token.end()))
        elif token["closing"] and opened:
            is_box, content = opened.pop()
            if is_box and content > start:
                start, boxed = content, text[content : token.start()].strip()
    return boxed


@of_turn
def exact_answer(
    prompts: Sequence[Any], completions: Sequence[Completion], answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1.0 where the extracted answer is the column `answer`, character by character, else 0.0.

    Abstains (None) where the column holds None.
    """
    return [
        None if a is None else float(extract_answer(c) == str(a).strip())
        for c, a in zip(completions, answer, strict=True)
    ]


@of_turn
def choice(
    prompts: Sequence[Any], completions: Sequence[Completion], answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    r"""1.0 where the letter that a completion chooses is the column `answer`, else 0.0.

    The one letter of what <answer>…</answer> or \boxed{…} holds ("(B)", "B. Paris"); else of the
    last "answer is B" or "Answer: (B)", or of a last line that is nothing else. Abstains (None)
    where the column holds None; ValueError where that is no single letter.
    """
    return [
        None if a is None else float(_chosen(c) == _letter(a))
        for c, a in zip(completions, answer, strict=True)
    ]


def _letter(answer: Any) -> str:
    match = _ALONE.fullmatch(str(answer).strip())
    if match is None:
        raise ValueError(f"column answer: {answer!r} is not a choice; valid: one letter, such as B")
    return match[1]


def _chosen(completion: Completion) -> str | None:
    whole = completion_text(completion)
    held = extract_answer(completion)
    boxed = extract_boxed(held)
    if boxed is not None or held != whole.strip():
        match = _OPENING.match((held if boxed is None else boxed).strip())
        return match[1] if match else None
    said = _SAID.findall(whole)
    if said:
        return said[-1]
    match = _ALONE.fullmatch(held.splitlines()[-1].strip()) if held else None
    return match[1] if match else None


def numeric_answer(tolerance: float = 1e-6) -> Reward:
    """A reward: 1.0 where the extracted answer is within `tolerance` of the column `answer`.

    Commas and a leading $ are ignored; text that is no number scores 0.0; None in the column
    abstains. The reward raises ValueError where the column itself holds no number.
    """

    @of_turn
    def numeric(
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        answer: Sequence[Any],
        **columns: Any,
    ) -> list[float | None]:
        return [
            None if a is None else _close(extract_answer(c), a, tolerance)
            for c, a in zip(completions, answer, strict=True)
        ]

    return numeric


def _close(given: str, answer: Any, tolerance: float) -> float:
    expected, got = _number(str(answer)), _number(given)
    if expected is None:
        raise ValueError(f"column answer: {answer!r} is not a number")
    return float(got is not None and abs(got - expected) <= tolerance)


def _number(text: str) -> float | None:
    text = text.strip().removeprefix("$").replace(",", "")
    return float(text) if _NUMBER.fullmatch(text) else None
