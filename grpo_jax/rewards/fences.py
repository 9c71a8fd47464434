"""The program in a completion: of Markdown's fenced blocks, the one that is Python."""

import re
import textwrap
from typing import NamedTuple

from grpo_jax.rewards.text import Completion, completion_text, extract_answer

# A fence opens at the start of a line, or after words with nothing but a language behind it. A run
# of backticks that ends on its line is no fence.
_OPENING = re.compile(
    r"""(?P<inline>```[^`\n]+```)
    | ^(?P<indent>[ \t>]*(?:(?:[-*+]|\d+[.)])[ \t]+)?)
       (?P<fence>`{3,}|~{3,})(?P<info>[^`\n]*)(?:\n|\Z)
    | (?P<midway>`{3,})(?P<language>[\w.+\#{}-]*)[ \t]*(?:\n|\Z)""",
    re.MULTILINE | re.VERBOSE,
)
_LANGUAGE = re.compile(r"[\w+#]+(?:[.-][\w+#]+)*")
_PYTHON = re.compile(r"(?:i?python|py)[\d.]*")
_CODE = re.compile(r"\b(?:def|class|import|for|while|return|lambda)\b|\w\(|=")
_SESSION = re.compile(r"\s*>>>")


class Block(NamedTuple):
    """A fenced block: the language that its fence names, in lower case, or '', and its text."""

    language: str
    text: str


def extract_code(completion: Completion) -> str:
    """The program in a completion.

    Of what <answer>…</answer> holds, or else of the whole completion: the last block whose fence
    says Python; else the last whose fence says nothing, one that looks like code before one that
    looks like output; else the last of all; where there is no fence, the text.
    """
    answer = _lines(extract_answer(completion))
    for text in (answer, _lines(completion_text(completion))):
        if found := blocks(text):
            return _program(found).text
    return answer


def _program(found: list[Block]) -> Block:
    runs = [block for block in found if not _SESSION.match(block.text)]
    bare = [block for block in runs if not block.language]
    kinds = (
        [block for block in runs if _PYTHON.fullmatch(block.language)],
        [block for block in bare if _CODE.search(block.text)],
        bare,
        found,
    )
    return next(blocks for blocks in kinds if blocks)[-1]


def blocks(text: str) -> list[Block]:
    r"""The fenced blocks of a text whose lines end in \n; one that is never closed ends with it."""
    found, at = [], 0
    while opening := _OPENING.search(text, at):
        at = opening.end()
        if opening["inline"]:
            continue
        fence, info = opening["fence"] or opening["midway"], opening["info"] or opening["language"]
        language = _LANGUAGE.search(info or "")
        end, at = _closing(text, at, fence, len(opening["indent"] or ""))
        inside = textwrap.dedent(text[opening.end() : end])
        found.append(Block(language[0].lower() if language else "", inside))
    return found


def _closing(text: str, start: int, fence: str, indent: int) -> tuple[int, int]:
    """Where a block ends that starts there, and where the text goes on.

    Its closing fence starts a line, indented by less than four spaces more than the opening one; or
    it ends one; or, where the block would not be closed so, stands anywhere. A fence with a
    language opens the next block.
    """
    run = f"{fence[0]}{{{len(fence)},}}"
    at_start = rf"^[ \t>]{{0,{indent + 3}}}{run}"
    at_end = rf"(?<=[^\s{fence[0]}]){run}[ \t]*$"
    for pattern in (f"{at_start}|{at_end}", run):
        if closing := re.compile(pattern, re.MULTILINE).search(text, start):
            opens = re.compile(r"[\w.+#{}-]+[ \t]*$", re.MULTILINE).match(text, closing.end())
            return closing.start(), closing.start() if opens else closing.end()
    return len(text), len(text)


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
