"""The letter that a completion chooses in a multiple choice."""

import re
from collections.abc import Sequence

from grpo_jax.rewards.answers import stated, statements, undecorated
from grpo_jax.rewards.text import Completion
from grpo_jax.rewards.turn import Prompt, of_turn

_ALONE = re.compile(r"[(\[]?([A-Z])[)\]]?[.:]?")
_STYLED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|bf|rm)\s*\{([^{}]*)\}")
_LETTER = r"[(\[]{0,2}(?P<letter>[A-Z])(?![\w'\u2019])"
_OTHER = r"\s*[(\[]?[A-Z](?![\w'\u2019])(?=\W*$|\s*[.,;:/&)\]]|\s+(?:or|and|[A-Z](?!\w)))"
_OPTION = r"(?i:option|choice|letter|answer)"
_ADVERB = r"(?i:so|therefore|thus|hence|then|simply|clearly|indeed|definitely|likely|probably)"
# What may follow the letter: nothing, its text ("B. Paris", "B) Paris"), or a reason.
_CHOSEN = re.compile(
    rf"(?:{_ADVERB}[,:]?\s+)*(?:(?i:the\s+)?{_OPTION}\s*:?\s+)?{_LETTER}"
    rf"(?:[)\]]{{0,2}}\s*!?\s*(?:$|\n)|[)\]]?[.:](?!{_OTHER})|[)\]](?!\s*(?:or|and)\b|[,;/&]?{_OTHER})"
    rf"|\s*[,;](?!(?:\s*(?:or|and)\b)?{_OTHER})|\s*[-\u2013\u2014(](?!{_OTHER})"
    r"|[)\]]?\s+(?:because|since|as|for|which|given|due|from|by|(?:and\s+)?not"
    r"|is\s+(?:the\s+)?(?:correct|right|true|best|answer))\b)"
)
_NAMED = re.compile(r"[(\[]?[A-Z](?![\w'\u2019])")
# "I would go with B."
_PICKED = re.compile(
    rf"^(?:{_ADVERB}[,:]?\s+)*(?:I|[Ww]e)(?:['\u2019](?:d|ll)|\s+(?:would|will|have to|must))?\s+"
    r"(?:choose|pick|select|go\s+(?:with|for))\s+"
)
_BOLD = re.compile(r"\*\*(.+?)\*\*|__(.+?)__")
LONE = 4  # characters of a letter by itself, "(b)."; lower case is read there only


@of_turn
def choice(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    answer: Sequence[object],
    **columns: object,
) -> list[float | None]:
    r"""1.0 where the letter that a completion chooses is the column `answer`, else 0.0.

    The letter that the final answer begins with, in tags, a box or after "the answer is": by itself
    ("(B)", "option B"), with its text ("B. Paris") or with a reason ("B, because"); else that of
    the last line, which may have it in bold. Several letters are no choice, nor is the last of a
    list of options. Abstains (None) where the column holds None; ValueError where that is no
    single letter.
    """
    return [
        None if a is None else float(_chosen(c) == _letter(a))
        for c, a in zip(completions, answer, strict=True)
    ]


def _letter(answer: object) -> str:
    match = _ALONE.fullmatch(str(answer).strip().upper())
    if match is None:
        raise ValueError(f"column answer: {answer!r} is not a choice; valid: one letter, such as B")
    return match[1]


def _chosen(completion: Completion) -> str | None:
    found = stated(completion)
    if found.mark == "answer":
        for text in statements(found.within):
            if (letter := _read(text)) or _NAMED.match(text):  # "A or C" takes back what was before
                return letter
        return None
    if found.mark:
        return _read(found.text)
    lines = [line for line in found.within.splitlines() if line.strip()]
    if len(lines) > 1 and _read(undecorated(lines[-2])):  # the last one of a list of options
        return None
    return _read(found.text) or _bold(lines[-1] if lines else "")


def _read(text: str) -> str | None:
    text = _PICKED.sub("", _plain(text))
    match = _ALONE.fullmatch(text.upper()) if len(text) <= LONE else None
    if match is not None:
        return match[1]
    match = _CHOSEN.match(text)
    return match["letter"] if match else None


def _plain(text: str) -> str:
    """Without LaTeX's and Markdown's styles."""
    before = None
    while before != text:
        before, text = text, _STYLED.sub(r"\1", text)
    return re.sub(r"[*_`$\"]|\\[()\[\],;! ]|^\s*'|'(?=[.!\s]*$)", "", text).strip()


def _bold(text: str) -> str | None:
    """The one letter that a line has in bold; None where there is none or another."""
    letters = {_read(a or b) for a, b in _BOLD.findall(text)} - {None}
    return letters.pop() if len(letters) == 1 else None
