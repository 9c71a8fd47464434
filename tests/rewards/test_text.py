import pytest

from grpo_jax.rewards.form import format_tags
from grpo_jax.rewards.text import (
    exact_answer,
    extract_answer,
    extract_boxed,
    final_answer,
    numeric_answer,
)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (" 12 \n", "12"),
        ("<think>x</think><answer> 12 </answer>", "12"),
        ("<answer>1</answer> no <answer>2</answer> tail", "2"),
        ("<answer>1<answer>2</answer>", "2"),
        ("<answer>1", "<answer>1"),
        ("1</answer>", "1</answer>"),
        ("</answer><answer>", "</answer><answer>"),
        ("<answer></answer>", ""),
        ([{"role": "assistant", "content": "<answer>3</answer>"}], "3"),
    ],
)
def test_extract_answer(completion, answer):
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(
    ("completion", "told"),
    [
        ("<think>x</think><answer> 12 </answer>", "12"),
        ("<think>x</think> It is 12.\n", "It is 12."),
        ("x</think>12", "12"),  # a template that opens the thought itself
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>no <answer>3</answer></think>It is 4.", "It is 4."),
        ("<answer>12</answer>", "12"),
        ("<think>x</think><answer>1", "<answer>1"),
        ([{"role": "assistant", "content": "<think>x</think>3"}], "3"),
        ("<think>x</think> ", None),
        ("<think>x</think><answer> </answer>", None),
        ("<think>12", None),
        ("12", None),
        ("", None),
    ],
)
def test_final_answer(completion, told):
    assert final_answer(completion) == told


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so $\boxed{12}$.", "12"),
        (r"\boxed{1} and \boxed{ 2 }.", "2"),
        (r"\boxed{\frac{1}{2}} of {3}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed {5}", "5"),
        (r"\fbox{5}", "5"),
        (r"$\boxed 5$ {x}", "5"),
        (r"{ \boxed{5} }} }", "5"),
        (r"\boxed{5} and \boxed{6", "5"),
        (r"\boxed{a \boxed{b} c}", "b"),
        (r"\boxed{}", ""),
        (r"\boxed 5", None),
        (r"\boxed{5", None),
        ("{5}", None),
        ("", None),
        ("\\boxed{" * 10_000, None),
    ],
)
def test_extract_boxed(text, boxed):
    assert extract_boxed(text) == boxed


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("<think>a\nb</think><answer>c</answer>", 1.0),
        (" <think></think>\n\n<answer></answer>\n", 1.0),
        ("x<think>a</think><answer>c</answer>", 0.0),
        ("<think>a</think>x<answer>c</answer>", 0.0),
        ("<think>a</think><answer>c</answer>x", 0.0),
        ("<think>a<think></think><answer>c</answer>", 0.0),
        ("<answer>c</answer><think>a</think>", 0.0),
        ("<think>a<answer></think>c</answer>", 0.0),
        ("<think>a</think><answer>c", 0.0),
        ("<answer>c</answer>", 0.0),
        ("<think>a</think><answer>c</answer>" * 2, 0.0),
        ("", 0.0),
    ],
)
def test_format(completion, score):
    assert format_tags(prompts=["p"], completions=[completion]) == [score]


def test_exact_answer_compares_text_and_abstains_without_an_answer():
    scores = exact_answer(
        prompts=["p"] * 4,
        completions=["12", "<answer>12</answer>", "12.0", "12"],
        answer=["12", 12, "12", None],
        other=[0] * 4,
    )
    assert scores == [1.0, 1.0, 0.0, None]


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        ("$1,234.50", "1234.5", 1.0),
        ("1e3", 1000, 1.0),
        ("0.1234", 0.12, 0.0),
        ("0.121", 0.12, 1.0),
        ("nan", 1, 0.0),
        ("1_0", 10, 0.0),
        ("٣", 3, 0.0),
        ("three", 3, 0.0),
        ("3", None, None),
    ],
)
def test_numeric_answer(completion, answer, score):
    reward = numeric_answer(tolerance=2e-3)
    assert reward(prompts=["p"], completions=[completion], answer=[answer]) == [score]


def test_numeric_answer_refuses_a_column_without_a_number():
    with pytest.raises(ValueError, match="column answer: 'x' is not a number"):
        numeric_answer()(prompts=["p"], completions=["1"], answer=["x"])
