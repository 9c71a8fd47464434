"""Chat messages laid out by a chat template, as Transformers renders it."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_jax.checks import RENDERED, closest
from grpo_jax.rewards.turn import CLOSE, OPEN, from_thought, written

Messages = list[dict[str, Any]]

_HELPERS = ("raise_exception", "strftime_now")  # functions that Transformers gives a template
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # Transformers' own statement


def render_chat(
    template: str, messages: Messages, known: Mapping[str, Any], opening: bool = True
) -> str:
    """The messages in the template's layout, with the assistant's turn opened.

    A last message of the assistant's is its turn begun, which the model continues: the text ends
    with its content (Transformers' continue_final_message). known is what the template may name
    beside them; without `opening`, the text ends with the last message. ValueError where there is
    no Transformers, or where the template refuses the messages.
    """
    try:  # text alone needs neither, and the import takes a second
        import jinja2  # noqa: F401
        from transformers.utils.chat_template_utils import render_jinja_template
    except ImportError as error:
        raise ValueError(
            f"chat messages need Transformers: pip install 'grpo_jax[hf]' ({error})"
        ) from error
    begun = opening and bool(messages) and messages[-1].get("role") == "assistant"
    try:
        texts, _ = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            add_generation_prompt=opening and not begun,
            continue_final_message=begun,
            **known,
        )
    except Exception as error:  # a template is a program, which may raise anything
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the chat template refuses the messages: {said}") from error
    return texts[0]


def chat_prefill(template: str, messages: Messages, known: Mapping[str, Any]) -> str:
    """What the rendered messages hold of the assistant's turn (`rewards.turn`); "" for nothing.

    That is the content of an assistant's message to continue, and a <think> that the template
    opened, or closed at once, after the last message before.
    """
    text, said = render_chat(template, messages, known), written(messages).strip()
    if OPEN not in text and CLOSE not in text and not said:
        return ""
    begun = messages[-1].get("role") == "assistant"
    before = messages[:-1] if begun else messages
    told = render_chat(template, before, known, opening=False) if before else ""
    same = itertools.takewhile(lambda two: two[0] == two[1], zip(text, told, strict=False))
    turn = text[sum(1 for _ in same) :]
    if OPEN in turn:
        return from_thought(turn)
    if CLOSE in turn:  # DeepSeek-V3.1 closes a thought that nothing opens
        return OPEN + turn[turn.find(CLOSE) :]
    return turn[turn.rfind(said) :] if said else ""


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
        + (f"; the closest that it reads is {closest(name, sorted(read))!r}" if read else "")
        for name in names
        if name not in read and not re.search(rf"\b{re.escape(name)}\b", template)
    ]
