"""The assistant's turn: the prefill in its prompt, and the completion that the policy writes.

A chat template may open <think> itself, a text prompt may end in "<think>", and a chat may end in
an assistant message to continue. That text is the turn's prefill, and rewards read the whole turn:
prefill + completion.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

Prompt: TypeAlias = str | list[dict[str, Any]]  # text, or chat messages
R = TypeVar("R")

OPEN, CLOSE = "<think>", "</think>"

_THOUGHT = rf"{OPEN}(?:(?!{CLOSE}).)*"  # that goes on
_NO_THOUGHT = rf"{OPEN}\s*{CLOSE}"
# What a text may end in: an opened part of an answer, or any thought right after "Assistant:".
_ENDING = re.compile(
    rf"(?:(?:{_NO_THOUGHT}\s*)?(?:<answer>|\\boxed\s*\{{|```\w+)|{_NO_THOUGHT}|{OPEN}"
    rf"|(?<=(?i:assistant))\W*{_THOUGHT}(?:{CLOSE}\s*<answer>)?)\s*\Z",
    re.DOTALL,
)


def written(prompt: Prompt) -> str:
    """The prefill that a prompt itself shows, whatever a chat template adds; "" for none.

    Of chat messages, the content of a last one that is the assistant's. Of text, what it ends in:
    <think>, an empty <think></think>, <answer>, a box or fenced block of code that is open, or a
    thought that "assistant" stands right before. A prefill starts at its last <think>, if any.
    """
    if isinstance(prompt, str):
        match = _ENDING.search(prompt)
        return from_thought(match[0]) if match else ""
    last = prompt[-1] if prompt else {}
    return from_thought(last["content"]) if last.get("role") == "assistant" else ""


def from_thought(text: str) -> str:
    """The text from its last <think> on; all of it where there is none."""
    return text[max(text.rfind(OPEN), 0) :]


def of_turn(reward: Callable[..., R]) -> Callable[..., R]:
    """The reward, given whole turns for completions.

    The column `prefill` has what each prompt holds of them; without it, `written` says so.
    """

    @functools.wraps(reward)
    def whole(
        prompts: Sequence[Prompt],
        completions: Sequence[Prompt],
        *rest: object,
        prefill: Sequence[str] | None = None,
        **columns: object,
    ) -> R:
        held = prefills(prompts, completions, prefill)
        turns = [_joined(a, b) for a, b in zip(held, completions, strict=True)]
        return reward(prompts, turns, *rest, **columns)

    return whole


def prefills(
    prompts: Sequence[Prompt] | None, completions: Sequence[Prompt], prefill: Sequence[str] | None
) -> Sequence[str]:
    """The column `prefill`, or else of each prompt what is `written`."""
    if prefill is not None:
        return prefill
    return [written(prompt) for prompt in prompts or [""] * len(completions)]


def _joined(prefill: str, completion: Prompt) -> Prompt:
    if not prefill:
        return completion
    if isinstance(completion, str):
        return prefill + completion
    first, *others = completion
    return [{**first, "content": prefill + first["content"]}, *others]


def remainder(prefill: str, turn: str) -> str:
    """What is left to write of a turn, such as a worked solution, after a prompt with `prefill`.

    Where the prompt opened <think>, the turn does not open it again; where it closed an empty
    thought, the turn's own goes. What does not begin as the prefill does is all left to write.
    """
    head, body = prefill.strip(), turn.lstrip()
    tag = CLOSE if CLOSE in head else OPEN
    if turn.startswith(prefill):
        return turn[len(prefill) :]
    if body.startswith(head):
        rest = body[len(head) :]
    elif OPEN in head and body.startswith(OPEN) and tag in body:
        rest = body.partition(tag)[2]
    else:
        return turn
    return rest.lstrip() if prefill[-1].isspace() else rest
