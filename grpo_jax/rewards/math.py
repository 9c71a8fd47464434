"""Mathematical equality, as the library math-verify sees it (the extra `math`)."""

import functools
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

from grpo_jax.rewards.answers import boxed_answer, is_expression, stated, undecorated
from grpo_jax.rewards.latex import PLAIN, is_list, same, shape, spelled
from grpo_jax.rewards.numbers import without_reason
from grpo_jax.rewards.text import Completion
from grpo_jax.rewards.turn import Prompt, of_turn

# The library warns wherever its own time limits are off. They are: they work by SIGALRM, which a
# long operation in C never notices and other threads than the main one must not set. The
# Rewarder's processes have a limit that holds.
for _module in ("parser", "grader"):
    logging.getLogger(f"math_verify.{_module}").setLevel(logging.ERROR)

# Of a gold that it cannot read the library would take the last number.
BOX = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)
# Environments that the library reads only in part, such as the last number of cases.
_UNREAD = re.compile(r"\\begin\s*\{(?![pbvVB]?matrix)|&(?!.*\\end\s*\{[pbvVB]?matrix)", re.DOTALL)
_DELIMITER = re.compile(r"(?<!\\)\$|\\\(|\\\[|\\boxed|\\fbox")  # in a gold that is a sentence
_DECIMAL_COMMA = re.compile(r"-?\d+,\d+")  # to the library
_SUM = re.compile(r"\s\([^()]*(?:\d\s*x\s*\d|=)[^()]*\)$")  # "18 (3 x 6)"
_CONTRADICTED = re.compile(r"(?:\bnot|n['\u2019]t)\s[^.\n]{1,60}?\bbut\b")
_BASE = re.compile(r"\d\s*_\s*\{?\s*(?:\\(?:text|mathrm)\s*\{)?\s*(\w+)")


@of_turn
def math_verify(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    answer: Sequence[object],
    **columns: object,
) -> list[float | None]:
    r"""1.0 where a completion's answer equals the column `answer`, LaTeX or a number, else 0.0.

    The answer is the final one (see `rewards.answers`), else what the library finds in the text.
    Right is what has the gold's text, spaces and LaTeX's styles aside, or what the library
    verifies, so that "1/2", "0.5" and "\frac{1}{2}" are one. Abstains (None) where the column holds
    None. Run it in a Rewarder with workers: "9^{9^{9^9}}" never ends.

    The library takes two different boxes for a set of both, where fewer than 10 characters, or
    fewer than 70 with a comma, "and" or "or", are between them, and else the last one. Here they
    are a set where nothing but such a separator is between them; where the gold is a list itself
    the library's reading counts too. In five cases this is stricter than the library:

    - a box, "####", "the final answer is" or <answer> settles the answer, and thoughts do not, nor
      does the reason in "the answer is 15 (3 less than 18)";
    - no element of a list is right for being in it, or for being its last one;
    - 1\,000 is a thousand, which the library takes for 1 times 0;
    - cases, arrays and other environments than matrices, of which the library reads one number,
      have to have the gold's text;
    - numbers whose bases are written and differ are not equal.
    """
    return [
        None if a is None else float(equal(c, str(a).strip()))
        for c, a in zip(completions, answer, strict=True)
    ]


def _load() -> None:
    """Have SymPy's parser at work, which takes a second at first."""
    equal("0.5", "1/2")


math_verify.at_start = _load  # type: ignore[attr-defined]


def equal(completion: Completion, gold: str) -> bool:
    """Whether what a completion states as its answer is the gold one."""
    found = stated(completion)
    expected = _gold_text(gold)
    formula = is_expression(found.text) and not _SUM.search(found.text)
    number = found.text if formula else without_reason(found)
    if same(found.text, expected) or same(number, expected):
        return True
    two = (found.text, expected)
    if any(map(_half_read, two)) or _bases_differ(*two):
        return False
    reasoned = number != found.text
    texts = [_boxed(number)] if reasoned and is_expression(number) else []
    if found.mark == "box" or is_expression(found.text):
        texts.append(_boxed(found.text))
    elif found.mark in ("####", "final"):
        texts.append(found.text)
    several = is_list(found.text) and not _DECIMAL_COMMA.fullmatch(found.text)
    corrected = found.mark == "answer" and _CONTRADICTED.search(found.within) is not None
    settled = found.mark in ("box", "####", "final") or several or reasoned or corrected
    if not settled or is_list(expected):
        texts.append(found.within)
    return any(verify(_gold(gold), _parse(text), timeout_seconds=None) for text in texts)


def unread(golds: Iterable[str]) -> list[str]:
    """The golds that the library reads as nothing: only their own text is equal to them.

    The library takes milliseconds for each, so those of a plain shape are not asked about, and of
    others of one shape, such as 3_5 and 4_7, only the first.
    """
    read = {PLAIN: True}
    none = []
    shape_of = functools.cache(lambda text: shape(_gold_text(text)))
    for gold in golds:
        its = shape_of(re.sub(r"\d", "8", gold))
        if its not in read:
            read[its] = any(not isinstance(value, str) for value in _gold(gold))
        if not read[its]:
            none.append(gold)
    return none


@functools.lru_cache(1)  # a group's completions share one
def _gold(gold: str) -> list[Any]:
    if _DELIMITER.search(undecorated(gold)):
        return _parse(gold)
    return parse(_boxed(_gold_text(gold)), (BOX,), parsing_timeout=None)


def _gold_text(gold: str) -> str:
    return undecorated(boxed_answer(gold) or gold)


def _boxed(text: str) -> str:
    return f"\\boxed{{{spelled(text)}}}"


def _parse(text: str) -> list[Any]:
    return parse(text, parsing_timeout=None)


def _half_read(text: str) -> bool:
    return not _DELIMITER.search(text) and _UNREAD.search(spelled(text)) is not None


def _bases_differ(given: str, gold: str) -> bool:
    bases = [_BASE.findall(text) for text in (given, gold)]
    return all(bases) and bases[0] != bases[1]
