"""Prompt templates by name: how a question becomes a prompt, and a solution a completion."""

from collections.abc import Callable
from typing import NamedTuple

from grpo_jax.errors import unknown
from grpo_jax.rewards.answers import extract_boxed
from grpo_jax.tasks.problem import Prompt

# DeepSeek-R1 (2501.12948), table 1.
R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the "
    "user with the answer. The reasoning process and answer are enclosed within <think> </think> "
    "and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
    "<answer> answer here </answer>. User: {prompt}. Assistant:"
)
# DeepSeekMath (2402.03300) asks so, on a separate line after the question.
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


class Template(NamedTuple):
    """A form of prompts and of the completions that answer them.

    prompt    question -> text or chat messages
    solution  reasoning, answer -> a completion that states the answer in the form asked for
    """

    prompt: Callable[[str], Prompt]
    solution: Callable[[str, str], str]


def make_template(name: str = "none", system: str | None = None) -> Template:
    """The template of that name; `system` is the system message that opens a chat.

    ValueError for an unknown name, with the nearest valid one, and for a system message where the
    prompt is text.
    """
    if name not in TEMPLATES:
        raise ValueError(unknown("template", name, TEMPLATES))
    template = TEMPLATES[name]
    if system is None:
        return template
    if name not in CHATS:
        raise ValueError(
            f"system={system[:40]!r}: template={name!r} makes no chat; valid: template in {CHATS}"
        )
    opening = [{"role": "system", "content": system}]
    return template._replace(prompt=lambda question: [*opening, *template.prompt(question)])


def _r1_zero(question: str) -> Prompt:
    return R1_ZERO.replace("{prompt}", question)


def _chat(question: str) -> Prompt:
    return [{"role": "user", "content": question}]


def _chat_boxed(question: str) -> Prompt:
    return _chat(f"{question}\n{BOXED}")


def _in_a_sentence(reasoning: str, answer: str) -> str:
    # MATH's solutions box their answer already; to say it again would be a second answer.
    boxed = extract_boxed(reasoning) is not None
    return reasoning if boxed else f"{reasoning} The answer is {answer}."


def _in_tags(reasoning: str, answer: str) -> str:
    return f"<think> {reasoning} </think> <answer> {answer} </answer>"


def _in_a_box(reasoning: str, answer: str) -> str:
    return _in_a_sentence(reasoning, f"\\boxed{{{answer}}}")


CHATS = ("chat", "boxed")
TEMPLATES = {
    "none": Template(str, _in_a_sentence),
    "tags": Template(str, _in_tags),
    "r1_zero": Template(_r1_zero, _in_tags),
    "chat": Template(_chat, _in_a_sentence),
    "boxed": Template(_chat_boxed, _in_a_box),
}
