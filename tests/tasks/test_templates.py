import pytest

from grpo_jax.rewards.form import format_tags
from grpo_jax.rewards.math import math_verify
from grpo_jax.rewards.numbers import last_number
from grpo_jax.tasks import make_task
from grpo_jax.tasks.templates import TEMPLATES, make_template


def test_text_templates():
    assert make_template().prompt("1+1={x}?") == "1+1={x}?"
    prompt = make_template("r1_zero").prompt("1+1={prompt}?")
    assert prompt.startswith("A conversation between User and Assistant. The user asks a question")
    assert prompt.endswith("<answer> answer here </answer>. User: 1+1={prompt}?. Assistant:")


def test_chat_templates():
    user = {"role": "user", "content": "1+1?"}
    system = {"role": "system", "content": "Be brief."}
    assert make_template("chat").prompt("1+1?") == [user]
    assert make_template("chat", "Be brief.").prompt("1+1?") == [system, user]
    [first, second] = make_template("boxed", "Be brief.").prompt("1+1?")
    assert first == system and second["content"] == (
        "1+1?\nPlease reason step by step, and put your final answer within \\boxed{}."
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_solution_states_the_answer_once_in_the_form_asked_for(name):
    solution = make_template(name).solution("9 - 5 = 4.", "4")
    assert last_number(None, [solution], answer=[4]) == [1.0]
    assert math_verify(None, [solution], answer=[4]) == [1.0]
    assert format_tags(None, [solution]) == [float(name in ("tags", "r1_zero"))]
    assert ("\\boxed{4}" in solution) == (name == "boxed")
    boxed = make_template(name).solution(r"So $x=\boxed{\frac14}$, of 3.", r"\frac14")
    assert math_verify(None, [boxed], answer=[r"\frac{1}{4}"]) == [1.0]
    assert boxed.count("boxed") == 1


def test_unknown_names_and_a_system_message_without_a_chat_are_refused():
    with pytest.raises(ValueError, match="unknown template 'r1zero'; did you mean 'r1_zero'"):
        make_task("word_problems", template="r1zero")
    with pytest.raises(ValueError, match=r"system='Hi': template='none' makes no chat; valid: "):
        make_task("word_problems", system="Hi")
