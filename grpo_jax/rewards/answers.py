r"""The final answer of a completion: the one extractor that all rewards of answers share.

Of what follows the thoughts, what <answer>…</answer> holds, and in that the first of these found:

    \boxed{5}                  or "#### 5", or "the final answer is 5": the last of the three
    The answer is: **5**.      or "Answer: 5", to the end of the sentence; or "5 is the answer"
    5                          all that the tags hold, or else the last line, or what that has
                               between dollars at its end
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from grpo_jax.rewards.text import Completion, completion_text, extract_answer

_OPENING = r"\\(?:boxed|fbox)\s*"
_BRACE = re.compile(rf"(?P<opening>(?P<box>{_OPENING})?\{{)|\\.|(?P<closing>\}})", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed(?:\s+|(?=\d))([^{}$\s][^{}$\n]*)(?=\$)")
# What stands between the boxes of one list: "\boxed{2}$ and $\boxed{3}".
_LISTED = re.compile(
    r"(?:[\s$,;&]|\\[,;:! ()\[\]]|\\q?quad)*"
    r"(?:(?:and|or)\b|\\(?:text|mbox)\s*\{\s*,?\s*(?:and|or)\s*\})?"
    r"(?:[\s$]|\\[,;:! ()\[\]])*"
)
_HASHED = re.compile(r"####[ \t]*(?P<text>[^\n]*)")
_LABEL = re.compile(
    r"\b(?P<final>final\s+)?(?:answers?|(?:correct|right|best)\s+(?:option|choice))\b(?:\s+(?:to|of|for)\s[^.:\n]{1,80}?)?[*_\s]*"
    r"(?P<verb>\b(?:(?:is|are|was)\s+not|isn['\u2019]t)\s[^.\n]{1,60}?,?\s+but(?:\s+rather)?\b"
    r"|\b(?:is|are|was)\b|['\u2019]s\b(?=[*_\s:$(\[\\-]*(?:\d|(?-i:[A-Z])\b))|:|=|\b(?:(?:would|should|must|will|can\s+only|(?:has|have|ought)\s+to)"
    r"\s+be|(?:comes?|came|works?)\s+(?:out\s+)?to|turns?\s+out\s+to\s+be|equals)\b"
    r"(?=[^.\n]{0,99}?(?:\d|\\|\b(?-i:[A-Z]))))[*_\s:=]*",
    re.IGNORECASE,
)
# "So 18 is the final answer because …", where nothing follows "the answer is".
_NAMED = re.compile(
    r"(?<![^\s,;:])(?P<text>[^\s,;:\d]{0,9}\d[^\s,;:]{0,60})\s+(?:is|was)\s+(?:the|our|my)\s+"
    r"(?:(?:final|correct|right)\s+)?answer\b(?!\s+(?:to|of|for)\b)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(
    r"(?P<display>\$\$.*?\$\$|\\\[.*?\\\])"
    r"|(?P<text>(?:(?!(?<!i\.e)(?<!e\.g)\.(?:[\s*\"]|$)|[?]\s|!\s+[A-Z])[^\n]){0,1000})",
    re.DOTALL,
)
_PAIRS = (
    *(("**", "**"), ("__", "__"), ("$$", "$$"), ("$", "$"), ("*", "*"), ("`", "`")),
    *(('"', '"'), ("\u201c", "\u201d"), ("\\(", "\\)"), ("\\[", "\\]")),
)
# "12 apples", not "\frac", "\text{apples}", "xy" or "ABE".
_TEXT = re.compile(r"\\(?:text|mbox|hbox|mathrm|mathbf|operatorname)[a-z]*\s*\{[^{}]*\}")
_WORD = re.compile(r"(?<![\\A-Za-z{])(?![A-Z]+(?![a-z]))(?=[A-Za-z]*[aeiouAEIOU])[A-Za-z]{3,}")
_ENDING = re.compile(r"(?<![\\\d])\$([^$\n]+)(?<!\\)\$\W*$|\\\(((?:(?!\\\)).)+)\\\)\W*$")
LONGEST = 200  # characters of one expression; parsers are slow on nonsense


class Stated(NamedTuple):
    """A final answer.

    text    the answer, without emphasis, delimiters of mathematics and the final period
    mark    how it was marked: "box", "####", "final", "answer", "tags", or "" for the last line
    within  the text of the completion in which it was looked for
    """

    text: str
    mark: str
    within: str


def stated(completion: Completion) -> Stated:
    """What a completion states as its final answer (see the module)."""
    whole = completion_text(completion)
    thought, _, after = whole.rpartition("</think>")
    whole = after if thought and after.strip() else whole
    within = extract_answer(whole)
    marked = _marked(within) or _said(within)
    if marked is not None:
        return marked
    if within != whole.strip():
        return Stated(undecorated(within), "tags", within)
    last = within.rpartition("\n")[2]
    ending = _ENDING.search(last)
    return Stated(undecorated(ending[1] or ending[2] if ending else last), "", within)


def _marked(within: str) -> Stated | None:
    """The last of boxes, #### and "final answer is"; None where there is none."""
    found: list[tuple[int, str, str]] = []
    boxes = _last_boxes(within)
    if boxes is not None:
        found.append((boxes[0], boxes[1], "box"))
    hashed = [m for m in _HASHED.finditer(within) if is_expression(undecorated(m["text"]))]
    if hashed:  # else a heading of Markdown
        found.append((hashed[-1].start(), hashed[-1]["text"], "####"))
    *_, said = (None, *_LABEL.finditer(within))
    if said is not None and said["final"] and said["verb"] not in ":=":
        found.append((said.start(), _sentence(within, said.end()), "final"))
    found = [(start, bare, mark) for start, text, mark in found if (bare := undecorated(text))]
    if not found:
        return None
    _, text, mark = max(found)
    # "The final answer is \boxed{5}" is a box.
    if mark == "final" and boxes is not None and "\\boxed" in text:
        return Stated(undecorated(boxes[1]), "box", within)
    return Stated(text, mark, within)


def _said(within: str) -> Stated | None:
    text = next(filter(None, statements(within)), None)
    if text is None and (named := list(_NAMED.finditer(within))):
        text = undecorated(named[-1]["text"])
    return None if text is None else Stated(text, "answer", within)


def statements(within: str) -> Iterator[str]:
    """What follows each "answer is" or "Answer:", to the end of the sentence; the last first."""
    for label in reversed(list(_LABEL.finditer(within))):
        yield undecorated(_sentence(within, label.end()))


def _sentence(text: str, start: int) -> str:
    match = _SENTENCE.match(text, start)
    return match[0] if match else ""


def undecorated(text: str) -> str:
    r"""A text without what surrounds it: **, $, \(…\), quotes, and the final period or comma."""
    while True:
        bare = text.strip()
        end = len(bare.rstrip(".,;: "))
        if bare[:end].endswith(("\\", "\\right")):
            end += 1
        bare = bare[:end].removeprefix("**").removesuffix("**")
        for left, right in _PAIRS:
            inner = bare[len(left) : -len(right)]
            if (
                len(bare) > len(left) + len(right)
                and bare.startswith(left)
                and bare.endswith(right)
                and not bare.endswith("\\$")
                and right not in inner.replace("\\$", "")
            ):
                bare = inner
        if bare == text:
            return text
        text = bare


def is_expression(text: str) -> bool:
    """Whether a text is one expression, not a sentence: no words outside LaTeX, not too long."""
    short = 0 < len(text) <= LONGEST and "\n" not in text
    return short and _WORD.search(_TEXT.sub("", text)) is None


def extract_boxed(text: str) -> str | None:
    r"""What the last \boxed{…} with balanced braces holds, stripped; None where there is none.

    \fbox{5} and "$\boxed 5$", which MATH's solutions have too, are the same.
    """
    boxes = _boxes(_braced(text))
    return max(boxes)[2] if boxes else None


def boxed_answer(text: str) -> str | None:
    r"""As `extract_boxed`, but of boxes with nothing but "and", "or" or a comma between them, all.

    "$\boxed{2}$ and $\boxed{3}$" is "2, 3". None where there is no box.
    """
    found = _last_boxes(text)
    return None if found is None else found[1]


def _last_boxes(text: str) -> tuple[int, str] | None:
    text = _braced(text)
    boxes = sorted(_boxes(text))
    if not boxes:
        return None
    start, _, content = boxes.pop()
    first, contents = start, [content]
    for begin, end, content in reversed(boxes):
        if not 0 <= first - end <= 100 or not _LISTED.fullmatch(text, end, first):
            break
        first = begin
        if content != contents[0]:
            contents.insert(0, content)
    return start, ", ".join(filter(None, contents))


def _braced(text: str) -> str:
    return _BARE_BOX.sub(r"\\boxed{\1}", text)


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Of each balanced box, where it begins, where it ends, and what it holds."""
    opened: list[tuple[int, int] | None] = []  # of each open brace: of a box, its place and content
    boxes = []
    for token in _BRACE.finditer(text):
        if token["opening"]:
            opened.append((token.start(), token.end()) if token["box"] is not None else None)
        elif token["closing"] and opened and (box := opened.pop()) is not None:
            boxes.append((box[0], token.end(), text[box[1] : token.start()].strip()))
    return boxes
