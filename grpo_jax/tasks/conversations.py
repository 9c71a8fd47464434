r"""Whether an assistant's last message in a prompt is an answer, or a beginning to continue.

To refuse a beginning is worse than to take an answer for one: a message counts as an answer only
where it states one as a sentence that is over.
"""

import re
from collections.abc import Iterable

# Forms in which nothing but a final answer stands.
_MARKED = re.compile(r"</answer>|\\boxed\s*\{[^{}]+\}|####\s*\S")
# What follows "the answer is", to the end of the message's sentence: a number, a letter or a name.
_STATED = re.compile(
    r"\b(?i:answer|result)\s*(?i:is|=|:)[\s:*_$\"'(\\]*"
    r"(?:-?\d[\d.,/%]*|[A-Z]|(?i:yes|no|true|false)|[A-Z][\w-]+(?: [A-Z][\w-]+)*)"
    r"[\s*_$\"')\]}]*(?:[.!;]|\n|$)"
)
_CLOSING = r"[\s*_$\"'`)\]}.!]*"
# A number after one of these counts or names something, "step 1.", "case 2", or is a part of what
# is to be computed, "2 + 2".
_LABEL = re.compile(
    r"(?:\b(?:steps?|parts?|cases?|questions?|problems?|tasks?|numbers?|no\.?|options?|chapters?|"
    r"lines?|methods?|ways?|examples?|stages?|equations?|figures?|tables?|points?|items?|rules?|"
    r"page|version|at|by|with|from|to|of|and|or)|\#|n[\u00ba\u00b0])[\s*_$(]*$"
    r"|[\d)\]}]\s*[-+*/^\u00d7\u00f7\u00b7\u2212]\s*$",
    re.IGNORECASE,
)
_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_OPEN_THOUGHT = re.compile(r"<think>(?!.*</think>)", re.DOTALL)
LONG = 20  # characters of a text that says more than a name or a number


def is_answer(content: str, answers: Iterable[object] = ()) -> bool:
    """Whether the content of a message is an answer, given what the record's answers are.

    It is where it has a box, <answer>…</answer> or "#### 18", where it states "the answer is 18.",
    where it has a whole solution, and where it ends in one of the answers, whatever its case and
    the commas of its thousands, or is "18 apples are left." or "So 2 + 2 = 4.". A thought that is
    still open is a beginning.
    """
    if _MARKED.search(content):
        return True
    if _OPEN_THOUGHT.search(content):
        return False
    if _STATED.search(content):
        return True
    said = _plain(content)
    given = [_plain(str(a)) for a in answers if isinstance(a, str | int | float)]
    return any(_says(said, answer) for answer in given if answer)


def _plain(text: str) -> str:
    return _COMMA.sub("", text).casefold().strip()


def _says(said: str, answer: str) -> bool:
    if len(answer) >= LONG:
        return answer in said
    gold = re.escape(answer.rstrip("."))
    end = re.search(rf"(?<![\w.,/-])[$\u20ac\u00a3-]?{gold}(?![\w]){_CLOSING}$", said)
    if end is not None and not _LABEL.search(said[: end.start()]):
        return True
    last = re.split(r"(?<=[.!?])\s+|\n", said)[-1]
    is_over = last.endswith((".", "!"))
    is_all = re.fullmatch(rf"[*_$]*{gold}[*_$]*(?: \w+){{0,2}} (?:is|are)\b[^.!?\n]*[.!]", said)
    equal = re.search(rf"=\s*[*_$]*{gold}(?![\w/^]|[.,]\d|\s*[-+*/=])", last)
    return bool((is_all and len(answer) > 1) or (is_over and equal))
