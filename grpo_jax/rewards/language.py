"""DeepSeek-R1's language consistency: the share of a thought's words that are in one language."""

import re
from collections.abc import Sequence
from functools import cache

from lingua import IsoCode639_1, LanguageDetector, LanguageDetectorBuilder

from grpo_jax.rewards.style import EAST_ASIAN
from grpo_jax.rewards.text import Completion, completion_text
from grpo_jax.rewards.turn import Prompt, of_turn

# The languages (ISO 639-1) that a word may be in, besides the one that is asked for.
LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "it", "ja", "ko", "pt", "ru", "zh")
SCRIPTS = re.compile(f"[{EAST_ASIAN}]+|[^{EAST_ASIAN}]+")


@of_turn
def language(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    language: Sequence[str | None] | None = None,
    **columns: object,
) -> list[float | None]:
    """Words in the target language / words (R1, 2501.12948, 2.3.2), in [0, 1].

    Of what <think>…</think> holds, or, where that is empty, of what follows; else of the whole
    completion. Each Chinese or Japanese character is a word, numbers and formulas are none. The
    column `language` is an ISO 639-1 code ("en" where there is no column). Abstains (None) where it
    is None or there is no word; ValueError where it is no such code.
    """
    targets = ["en"] * len(completions) if language is None else language
    return [
        None if target is None else consistency(_thought(c), target)
        for c, target in zip(completions, targets, strict=True)
    ]


def _load() -> None:
    """Have the models in memory, which takes seconds."""
    consistency("hello", "en")


language.at_start = _load  # type: ignore[attr-defined]


def consistency(text: str, target: str) -> float | None:
    """The share of the words of `text` that are in language `target`; None without words."""
    detector, wanted = _detector(target), iso_code(target)
    words = right = 0
    for run in SCRIPTS.findall(text):  # a short run in another script would be lost in the rest
        for part in detector.detect_multiple_languages_of(run):
            words += part.word_count
            right += part.word_count * (part.language.iso_code_639_1 == wanted)
    return right / words if words else None


def _thought(completion: Completion) -> str:
    text = completion_text(completion)
    _, opening, rest = text.partition("<think>")
    thought, _, after = rest.partition("</think>")
    return (thought if thought.strip() else after) if opening else text


def iso_code(target: str) -> IsoCode639_1:
    """The code as the library has it; ValueError where it is none."""
    code = getattr(IsoCode639_1, str(target).upper(), None)
    if code is None:
        raise ValueError(f"column language: {target!r} is not an ISO 639-1 code, such as 'en'")
    return code


@cache
def _detector(target: str) -> LanguageDetector:
    codes = dict.fromkeys(iso_code(name) for name in (*LANGUAGES, target))
    return LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()
