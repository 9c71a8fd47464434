"""The number that a completion ends in, for models that answer in a sentence."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from grpo_jax.rewards.text import (
    Completion,
    completion_text,
    extract_answer,
    extract_boxed,
)
from grpo_jax.rewards.turn import of_turn

# A minus counts where nothing stands before it that it could be taken from: "12-5" ends in 5.
_SIGN = "(?<![\\w)\\]}])(?P<minus>[-\u2212]\\$?|\\$[-\u2212])"
_DIGITS = r"(?P<digits>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(f"(?:{_SIGN})?{_DIGITS}", re.ASCII)


@of_turn
def last_number(
    prompts: Sequence[Any], completions: Sequence[Completion], answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    r"""1.0 where the last number of a completion equals the column `answer`, else 0.0.

    It is the last of what <answer>…</answer> holds, else \boxed{…}, else the whole completion.
    Commas by thousands, $, a final period and zeros after the point do not matter ("$1,234.50." is
    1234.5); fractions and exponents are not read. To list many numbers gains nothing: the last one
    alone is judged. Abstains (None) where the column holds None; ValueError where that is no
    number.
    """
    return [
        None if a is None else float(read_number(_stated(c)) == _expected(a))
        for c, a in zip(completions, answer, strict=True)
    ]


def vote(completion: Completion) -> str:
    r"""What a completion counts for in a majority vote: its answer, in one form for all its like.

    What <answer>…</answer> or \boxed{…} holds, else the last number, else the whole text; a
    number without commas, $ and zeros after the point.
    """
    whole = completion_text(completion).strip()
    held = _stated(completion)
    number = _NUMBER.fullmatch(held.removeprefix("$").rstrip("."))
    if held == whole or number is not None:
        value = read_number(held) if number is None else _value(number)
        return held if value is None else f"{value.normalize():f}"
    return held


def read_number(text: str) -> Decimal | None:
    """The last number in a text, exactly; None where there is none."""
    numbers = list(_NUMBER.finditer(text))
    return _value(numbers[-1]) if numbers else None


def _stated(completion: Completion) -> str:
    held = extract_answer(completion)
    boxed = extract_boxed(held)
    return held if boxed is None else boxed


def _expected(answer: Any) -> Decimal:
    match = _NUMBER.fullmatch(str(answer).strip().removeprefix("$"))
    if match is None:
        raise ValueError(f"column answer: {answer!r} is not a number; valid: 1234, -5, 0.5")
    return _value(match)


def _value(match: re.Match[str]) -> Decimal:
    value = Decimal(match["digits"].replace(",", ""))
    return -value if match["minus"] else value
