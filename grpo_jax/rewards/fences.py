"""The program in a completion: of Markdown's fenced blocks, one that is Python."""

import re
import textwrap
from collections.abc import Collection, Sequence, Set
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
_BARE = re.compile(r"\s*(?:(?:async\s+)?def\s|class\s|import\s|from\s+\S+\s+import\s|@\w|print\()")
_SESSION = re.compile(r"\s*>>>")
_WORD = re.compile(r"(?<![\w.])[^\W\d]\w*")
# The names that a block defines for others, the functions and classes among these, and all that it
# binds.
_DEFINED = re.compile(
    r"(?m)^(?:(?:async\s+)?(?:def|class)\s+(\w+)|(\w+)[ \t]*(?::[^=\n]{0,99})?=(?!=))"
)
_FUNCTION = re.compile(r"(?m)^(?:async\s+)?(def|class)\s+(\w+)")
_BOUND = re.compile(r"\b(?:def|class|import|as|for)\s+(\w+)|\b(\w+)[ \t]*(?::[^=\n]{0,99})?=(?!=)")
_READS = re.compile(r"\binput\s*\(|\bstdin\b(?!\s*=)|\bopen\(0\b|\bos\.read\(0|\bfileinput\b")
_PRINTS = re.compile(r"\bprint\s*\(|\bstdout\b")
# A line that does something when its block is run: no definition, import or plain value.
_ACTS = re.compile(
    r"(?m)^(?:(?:if|for|while|with|try)\b|(?!sys\.set|threading\.stack)[\w.]+\s*\("
    r"|(?!def|class|async)[^\s#@][^#\n=]*=.*\w\()"
)


class Block(NamedTuple):
    """A fenced block: the language that its fence names, in lower case, or '', and its text."""

    language: str
    text: str


class Program(NamedTuple):
    """A program's text, and the blocks beside it, the last first, which may define what it uses."""

    text: str
    others: tuple[str, ...] = ()


def extract_code(completion: Completion, calls: Collection[str] = ()) -> Program:
    """The program in a completion.

    calls  what the cases call, functions and classes; none where they have it read and print

    It is in what <answer>…</answer> holds, or else in what follows the thoughts, or in the whole:
    of the blocks whose fences say Python, or else of those whose fences say nothing, those that
    look like code before those that look like output, or else of all, the last that defines what
    is called, for an example of its use may follow. Without calls it is the last that reads input,
    or else that prints, by itself. Where there is no fence, it is the text.
    """
    whole = completion_text(completion)
    after = whole.rpartition("</think>")[2]
    after = after if after.strip() else whole
    texts = list(dict.fromkeys(map(_lines, (extract_answer(after), after.strip(), whole.strip()))))
    found = []
    for text in texts:
        if inside := blocks(text):
            found.append(_program(inside, calls))
        elif _BARE.match(text):
            found.append(Program(text))
    defining = [program for program in found if _defines(program.text, calls)]
    return next(iter([*defining, *found]), Program(texts[0]))


def _program(found: list[Block], calls: Collection[str]) -> Program:
    runs = [block for block in found if not _SESSION.match(block.text)]
    bare = [block for block in runs if not block.language]
    kinds = (
        [block for block in runs if _PYTHON.fullmatch(block.language)],
        [block for block in bare if _CODE.search(block.text)],
        bare,
        found,
    )
    texts = [[block.text for block in blocks] for blocks in kinds if blocks]
    if calls:
        defining = ([text for text in of if _defines(text, calls)] for of in texts)
        chosen = next(filter(None, [*defining, texts[0]]))[-1]
    else:
        chosen = _script(texts[0])
    others = (block.text for block in reversed(runs) if block.text != chosen)
    return Program(chosen, tuple(dict.fromkeys(others)))


def _script(texts: Sequence[str]) -> str:
    """Of blocks of Python the last that reads input, or else that prints, and is whole."""
    doing = [text for text in texts if _READS.search(text)]
    doing = doing or [text for text in texts if _PRINTS.search(text)] or list(texts)
    functions = {name for text in texts for _, name in _FUNCTION.findall(text)}
    whole = [text for text in doing if not _uses(text, functions)]
    chosen = (whole or doing)[-1]
    if _ACTS.search(chosen):
        return chosen
    after = texts[len(texts) - texts[::-1].index(chosen) :]  # which may call what it defines
    its = {name for _, name in _FUNCTION.findall(chosen)}
    return next((t for t in reversed(after) if _ACTS.search(t) and _uses(t, its)), chosen)


def _defines(text: str, names: Collection[str]) -> bool:
    return set(names) <= _names(_DEFINED, text)


def _uses(text: str, functions: Set[str]) -> bool:
    """Whether a block uses one of these that it does not bind itself."""
    return bool(functions & set(_WORD.findall(text)) - _names(_BOUND, text))


def _names(pattern: re.Pattern[str], text: str) -> set[str]:
    return {a or b for a, b in pattern.findall(text)}


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
