"""Chat prompts: continued where the assistant has begun, and what a template opens of its turn."""

import dataclasses
import re

import pytest
from chat_tokenizer import TEMPLATE, save
from transformers import AutoTokenizer

from grpo_jax import tokenizers as tk
from grpo_jax.tokenizers.chat import unused
from grpo_jax.training.experiment import with_kwargs

# How published templates end, by the last lines of each, after the messages of chat_tokenizer.
TURN = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
DISTILLED = TURN + "{{ '<think>\\n' }}{% endif %}"  # R1's distilled models, QwQ
QWEN3 = (
    TURN + "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
QWEN35 = QWEN3.replace(
    "' }}{% endif %}{% endif %}", "' }}{% else %}{{ '<think>\\n' }}{% endif %}{% endif %}"
)
DEEPSEEK31 = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    + TURN
    + "{{ '<think>' if thinking else '</think>' }}{% endif %}"
)
# How published templates lay out the assistant's own messages: an empty thought before what has
# none (Qwen3), a thought taken out (R1), the system's message in the last of the user's (Mistral).
FILLING = """{%- for m in messages %}{%- if m.role == 'assistant' %}{%- set said = m.content %}
{%- set thought = '' %}{%- if '</think>' in said %}
{%- set thought = said.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set said = said.split('</think>')[-1].lstrip('\n') %}{%- endif %}
{{- '<|im_start|>assistant\n<think>\n' + thought + '\n</think>\n\n' + said + eos_token }}
{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + eos_token + '\n' }}{%- endif %}
{%- endfor %}"""
TAKING = """{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' + m.content.split('</think>')[-1] + eos_token + '\n' }}
{%- endfor %}"""
LAST = """{%- set head = messages[0].content if messages[0].role == 'system' else '' %}
{%- for m in messages %}{%- if m.role == 'user' %}
{{- '[INST]' + (head if loop.last else '') + m.content + '[/INST]' }}
{%- elif m.role == 'assistant' %}{{- m.content|trim + eos_token }}{%- endif %}{%- endfor %}"""
BARE = LAST + "{% if add_generation_prompt %}{{ '<think>\n' }}{% else %}{{ '</s>' }}{% endif %}"
BODY = TEMPLATE[: TEMPLATE.index("{%- if add_generation")]
OFF = {"enable_thinking": False}
EMPTY = "<think>\n\n</think>\n\n"
USER = [{"role": "user", "content": "Think in <think>? 12 + 34"}]


def begun(text, **marks):
    return [*USER, {"role": "assistant", "content": text, **marks}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    save(folder)
    return folder


@pytest.fixture
def tokenizer(folder):
    def make(ending=None, **kwargs):
        plain = tk.load_tokenizer(folder)
        template = TEMPLATE if ending is None else BODY + ending
        return dataclasses.replace(plain, chat_template=template, template_kwargs=kwargs)

    return make


@pytest.mark.parametrize(
    ("ending", "kwargs", "messages", "held"),
    [
        (None, {}, USER, ""),
        (None, {}, begun("<think>\n12"), "<think>\n12"),
        (None, {}, begun("Let me see: "), "Let me see: "),
        (DISTILLED, {}, USER, "<think>\n"),
        (DISTILLED, {}, [*begun("<think>46</think>46"), *USER], "<think>\n"),
        (DISTILLED, {}, begun("It is"), "It is"),
        (QWEN3, {}, USER, ""),
        (QWEN3, OFF, USER, EMPTY),
        (QWEN35, {}, USER, "<think>\n"),
        (QWEN35, OFF, USER, EMPTY),
        (DEEPSEEK31, {}, USER, "<think></think>"),
        (DEEPSEEK31, {"thinking": True}, USER, "<think>"),
    ],
)
def test_what_a_template_opens_of_the_turn(tokenizer, ending, kwargs, messages, held):
    ours = tokenizer(ending, **kwargs)
    assert tk.prefill(ours, messages) == held
    text = ours.backend.decode(tk.prompt_ids(ours, messages), skip_special_tokens=False)
    assert text.endswith(held.removeprefix("<think>") if ending is DEEPSEEK31 else held)


HEAD = "<|im_start|>assistant\n"
SYSTEM = [{"role": "system", "content": "Think in <think></think>."}]


@pytest.mark.parametrize(
    ("template", "kwargs", "messages", "opened", "held"),
    [
        (FILLING + QWEN3, {}, begun("It is"), HEAD, f"{EMPTY}It is"),
        (FILLING + QWEN3, {}, begun("<think>\n12"), HEAD, "<think>\n12"),
        (FILLING + QWEN3, OFF, begun("<think>\n12"), HEAD, "<think>\n12"),
        (FILLING + QWEN35, {}, begun("<think>\n12"), HEAD, "<think>\n12"),
        (FILLING + QWEN3, {}, begun("<think>12</think>So"), HEAD, "<think>12</think>So"),
        (FILLING + QWEN3, {}, begun("<think>12</think>"), HEAD, "<think>12</think>"),
        (TAKING + DISTILLED, {}, begun("<think>\n12"), HEAD, "<think>\n12"),
        (TAKING + DISTILLED, {}, begun("<think>12</think>So"), HEAD, "<think>12</think>So"),
        (TAKING + DEEPSEEK31, {}, begun("<think>12</think>So"), HEAD, "<think>12</think>So"),
        (TAKING + TURN + "{% endif %}", {}, begun(" \n"), HEAD, ""),
        (TAKING + DISTILLED, {}, begun(""), HEAD, "<think>\n"),
        (LAST, {}, SYSTEM + begun("It is"), "[/INST]", "It is"),
        (BARE, {}, USER, "[/INST]", "<think>\n"),
        (BARE, {}, begun("<think>\n12"), "[/INST]", "<think>\n12"),
    ],
)
def test_a_beginning_is_neither_lost_nor_doubled_by_the_template(
    tokenizer, template, kwargs, messages, opened, held
):
    ours = dataclasses.replace(tokenizer(**kwargs), chat_template=template)
    text = tk.prompt_text(ours, messages)
    assert text.endswith(opened + held) and tk.prefill(ours, messages) == held
    for message in messages[:-1]:  # each once
        assert text.count(message["content"]) == 1


def test_a_text_prompt_needs_no_template(tokenizer):
    plain = dataclasses.replace(tokenizer(), chat_template=None)
    assert tk.prefill(plain, "12 + 34 = <think>\n") == "<think>\n"


@pytest.mark.parametrize("text", ["<think>\n12", "Let me see: ", " 日本\n\n", "46"])
def test_a_chat_that_ends_in_the_assistants_message_is_continued(tokenizer, folder, text):
    """As Transformers does where it is asked to; and by no second turn."""
    theirs = AutoTokenizer.from_pretrained(folder)
    messages = begun(text, prefix=True)
    ids = tk.prompt_ids(tokenizer(), messages)
    options = {"continue_final_message": True, "return_dict": False}
    assert ids == theirs.apply_chat_template(messages, **options)
    assert theirs.decode(ids).count("assistant") == 1 and theirs.decode(ids).endswith(text)


def test_what_a_template_is_given_changes_the_prompt_as_transformers_does(tokenizer, folder):
    theirs = AutoTokenizer.from_pretrained(folder)
    template = BODY + QWEN3
    for kwargs in ({}, OFF):
        options = {"add_generation_prompt": True, "return_dict": False, **kwargs}
        ids = theirs.apply_chat_template(USER, chat_template=template, **options)
        assert tk.prompt_ids(tokenizer(QWEN3, **kwargs), USER) == ids


@pytest.mark.parametrize(
    ("ending", "names", "lines"),
    [
        (QWEN3, ["enable_thinking"], []),
        (DEEPSEEK31, ["thinking"], []),
        (QWEN3, ["enable_thinkng"], ["not read 'enable_thinkng'; the closest .*'enable_thinking'"]),
        ("{% generation %}x{% endgeneration %}{% break %}", ["eos_token"], []),
        ("{% if %}", ["x"], []),
    ],
)
def test_names_that_a_template_never_reads_are_told(ending, names, lines):
    found = unused(BODY + ending, names)
    for line, pattern in zip(found, lines, strict=True):
        assert re.search(pattern, line)


def test_a_note_names_the_field(tokenizer, capsys):
    changed = with_kwargs(tokenizer(QWEN3), {"enable_thinkng": False, **OFF})
    assert changed.template_kwargs == {"enable_thinkng": False, **OFF}
    assert capsys.readouterr().err.startswith("note: config.chat_template_kwargs: the chat templ")
    with_kwargs(tokenizer(QWEN3), OFF)
    assert capsys.readouterr().err == ""
    with_kwargs(dataclasses.replace(tokenizer(), chat_template=None), OFF)
    assert "chat_template_kwargs: no chat template is there" in capsys.readouterr().err
