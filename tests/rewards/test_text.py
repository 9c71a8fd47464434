import pytest

from grpo_jax.rewards.form import format_tags
from grpo_jax.rewards.text import (
    exact_answer,
    extract_answer,
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
