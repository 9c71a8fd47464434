"""Mathematical equality, as the library math-verify sees it (the extra `math`)."""

import functools
import logging
import re
from collections.abc import Sequence
from typing import Any

from math_verify import parse, verify

from grpo_jax.rewards.text import Completion, extract_answer
from grpo_jax.rewards.turn import of_turn

# The library warns wherever its own time limits are off. They are: they work by SIGALRM, which a
# long operation in C never notices and other threads than the main one must not set. The
# Rewarder's processes have a limit that holds.
for _module in ("parser", "grader"):
    logging.getLogger(f"math_verify.{_module}").setLevel(logging.ERROR)

LONGEST_BARE = 200  # characters of an answer without delimiters; the parser is slow on nonsense

_DELIMITER = re.compile(r"\$|\\boxed|\\fbox|\\\(|\\\[|\\begin")
_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}")  # "12 apples", not "\frac" or "\text{apples}"


@of_turn
def math_verify(
    prompts: Sequence[Any], completions: Sequence[Completion], answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    r"""1.0 where a completion's answer equals the column `answer`, LaTeX or a number, else 0.0.

    The answer is what <answer>…</answer> holds, else the library's choice: \boxed{…}, then "the
    answer is …", then the last expression. Right is what has the gold's very text or what the
    library verifies, so "1/2", "0.5" and "\frac{1}{2}" are one. Abstains (None) where the column
    holds None. Run it in a Rewarder with workers: "9^{9^{9^9}}" never ends.
    """
    return [
        None if a is None else float(equal(extract_answer(c), str(a).strip()))
        for c, a in zip(completions, answer, strict=True)
    ]


def _load() -> None:
    """Have SymPy's parser at work, which takes a second at first."""
    equal("0.5", "1/2")


math_verify.at_start = _load  # type: ignore[attr-defined]


def equal(given: str, gold: str) -> bool:
    """Whether an answer, alone or in a text, is the gold one."""
    if given == gold:
        return True
    return verify(_gold(gold), _parse(given), timeout_seconds=None)


@functools.lru_cache(1)  # a group's completions share one
def _gold(gold: str) -> list[Any]:
    return _parse(gold if _DELIMITER.search(gold) else f"\\boxed{{{gold}}}")


def _parse(text: str) -> list[Any]:
    # The library finds LaTeX between delimiters only, and an answer in tags may be bare.
    bare = len(text) <= LONGEST_BARE and not (_DELIMITER.search(text) or _WORD.search(text))
    return parse(f"\\boxed{{{text}}}" if bare else text, parsing_timeout=None)
