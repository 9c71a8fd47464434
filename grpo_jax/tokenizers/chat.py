"""Chat messages laid out by a chat template, as Transformers renders it."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from grpo_jax.errors import nearest
from grpo_jax.rewards.turn import CLOSE, OPEN, from_thought

# What rendering a chat says itself, or what is no value of the template.
RENDERED = (
    *("messages", "conversations", "chat_template", "add_generation_prompt"),
    *("continue_final_message", "return_assistant_tokens_mask"),
)

Messages: TypeAlias = list[dict[str, Any]]

_HELPERS = ("raise_exception", "strftime_now")  # functions that Transformers gives a template
# A thought that a template has opened, or closed at once, at the end of a text.
_OPENED = re.compile(rf"(?:{OPEN}|(?:{OPEN}\s*)?{CLOSE})\s*\Z")
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # Transformers' own statement


def render_chat(template: str, messages: Messages, known: Mapping[str, object]) -> str:
    """The messages in the template's layout, with the assistant's turn opened.

    A last message of the assistant's is its turn begun, which the model continues: the text ends
    with its content, as Transformers' continue_final_message has it. Where that loses any of it, or
    of the messages before, or puts a second thought before its own, the content follows the turn
    as the template opens it. known is what the template may name beside the messages. ValueError
    where there is no Transformers, or where the template refuses the messages.
    """
    before, said = _begun(messages)
    if not said:
        return _rendered(template, before, known, add_generation_prompt=True)
    try:
        text = _rendered(template, messages, known, continue_final_message=True)
    except _NotKept:
        text = ""
    opened = _rendered(template, before, known, add_generation_prompt=True) if before else ""
    if _keeps(text, said, opened, before):
        return text
    if not before:
        raise ValueError(
            "the chat template does not keep the assistant's message; valid: one of the user's "
            "before it"
        )
    return (_OPENED.sub("", opened) if OPEN in said else opened) + messages[-1]["content"]


class _NotKept(ValueError):
    """Transformers cannot continue a message that the template leaves out or rewrites."""


def _begun(messages: Messages) -> tuple[Messages, str]:
    """The messages before the assistant's turn, and what a last one begins of it, stripped."""
    if not messages or messages[-1].get("role") != "assistant":
        return messages, ""
    return messages[:-1], messages[-1]["content"].strip()


def _rendered(template: str, messages: Messages, known: Mapping[str, object], **how: bool) -> str:
    try:  # text needs neither, and the import takes a second
        import jinja2  # noqa: F401
        from transformers.utils.chat_template_utils import render_jinja_template
    except ImportError as error:
        raise ValueError(
            f"chat messages need Transformers: pip install 'grpo_jax[hf]' ({error})"
        ) from error
    try:
        texts, _ = render_jinja_template(
            conversations=[messages], chat_template=template, **how, **known
        )
    except Exception as error:  # a template is a program, which may raise anything
        if isinstance(error, ValueError) and "continue_final_message" in str(error):
            raise _NotKept(str(error)) from error
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the chat template refuses the messages: {said}") from error
    return texts[0]


def _keeps(text: str, said: str, opened: str, before: Messages) -> bool:
    """Whether a text continued at `said` has all of it and of `opened`, and one thought at most."""
    if not text.rstrip().endswith(said):
        return False
    if OPEN in said and _OPENED.search(text[: text.rindex(said)]):
        return False
    shown = (message.get("content") for message in before)
    return all(c in text for c in shown if isinstance(c, str) and c in opened)


def chat_prefill(template: str, messages: Messages, known: Mapping[str, object]) -> str:
    """What the rendered messages hold of the assistant's turn (`rewards.turn`); "" for nothing.

    That is the content of an assistant's message to continue, and a <think> that the template
    opened, or closed at once, after the last message before.
    """
    text, (before, said) = render_chat(template, messages, known), _begun(messages)
    if OPEN not in text and CLOSE not in text and not said:
        return ""
    end = text.rindex(said) if said else len(text)
    earlier = _rendered(template, before, known, add_generation_prompt=False) if before else ""
    opened = text[_shared(text, earlier) : end]
    if OPEN in opened:
        opened = from_thought(opened)
    else:  # DeepSeek-V3.1 closes a thought that nothing opens
        opened = OPEN + opened[opened.find(CLOSE) :] if CLOSE in opened else ""
    return from_thought(opened + text[end:])


def _shared(text: str, other: str) -> int:
    """How many first characters two texts share, a tag of a thought that differs left whole."""
    same = itertools.takewhile(lambda two: two[0] == two[1], zip(text, other, strict=False))
    n = sum(1 for _ in same)
    tag = max(text.rfind("<", 0, n), 0)
    torn = text.startswith((OPEN, CLOSE), tag) and 0 < n - tag < len(OPEN)
    return tag if torn else n


def unused(template: str, names: Sequence[str]) -> list[str]:
    """A line for each of `names` that the template never reads, with the nearest that it does."""
    from jinja2 import Environment, TemplateError, meta

    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        syntax = environment.parse(_GENERATION.sub("", template))
    except TemplateError:  # rendering will say what is wrong with it
        return []
    read = meta.find_undeclared_variables(syntax) - {*RENDERED, *environment.globals, *_HELPERS}
    return [
        f"the chat template does not read {name!r}"
        + (f"; the closest that it reads is {nearest(name, sorted(read))!r}" if read else "")
        for name in names
        if name not in read and not re.search(rf"\b{re.escape(name)}\b", template)
    ]
