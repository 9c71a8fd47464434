"""The assistant's turn: what its prompt holds of it, and the rewards of the whole."""

import pytest

from grpo_jax.rewards import Rewarder, resolve
from grpo_jax.rewards.form import format_tags
from grpo_jax.rewards.turn import remainder, written
from grpo_jax.tasks import Problem
from grpo_jax.tasks.templates import make_template

NONE = "<think>\n\n</think>\n\n"


def chat(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


@pytest.mark.parametrize(
    ("prompt", "held"),
    [
        ("2+2?", ""),
        ("2+2? <think>", "<think>"),
        ("Assistant: Let me solve this step by step.\n<think>\n", "<think>\n"),
        ("User: 2+2? Assistant: <think> Let me", "<think> Let me"),
        ("<|im_start|>assistant\n<think>\nOkay, so", "<think>\nOkay, so"),
        ("Assistant: <think>4</think>\n<answer>", "<think>4</think>\n<answer>"),
        (f"2+2?\n{NONE}", NONE),
        ("2+2? <answer>", "<answer>"),
        ("The answer is \\boxed{", "\\boxed{"),
        ("Write f.\n```python\n", "```python\n"),
        ("Write f as in\n```\nx\n```\n", ""),
        ("Think in <think> and answer.", ""),
        ("Assistant: <think>4</think><answer>4</answer> User: 3+3? Assistant:", ""),
        (make_template("r1_zero").prompt("2+2?"), ""),
        ("", ""),
        (chat("2+2?"), ""),
        (chat("<think>"), ""),
        (chat("2+2?", "Let me"), "Let me"),
        (chat("2+2?", "Well. <think>\nOkay"), "<think>\nOkay"),
        (chat("2+2?", "<think>", "3+3?"), ""),
        (None, ""),
    ],
)
def test_what_a_prompt_shows_of_the_turn(prompt, held):
    assert written(prompt) == held


@pytest.mark.parametrize(
    ("held", "completion", "score"),
    [
        ("<think>\n", "4</think><answer>4</answer>", 1.0),
        ("<think>\nOkay", ", 4</think>\n<answer>4</answer>\n", 1.0),
        ("<think>4</think>\n<answer>", "4</answer>", 1.0),
        (NONE, "<answer>4</answer>", 1.0),
        ("<think></think>", "<answer>4</answer>", 1.0),
        ("Let me:", "<think>4</think><answer>4</answer>", 1.0),
        ("", "<think>4</think><answer>4</answer>", 1.0),
        ("<answer>", "<think>4</think><answer>4</answer>", 0.0),
        ("<think>\n", "<think>4</think><answer>4</answer>", 0.0),
        ("<think>\n", "4<answer>4</answer>", 0.0),
        ("<think>\n", "4</think><answer>4", 0.0),
        (NONE, "4</think><answer>4</answer>", 0.0),
        (NONE, "<think>4</think><answer>4</answer>", 0.0),
        ("", "4</think><answer>4</answer>", 0.0),
    ],
)
def test_the_format_is_the_whole_turns(held, completion, score):
    assert format_tags(["2+2?"], [completion], prefill=[held]) == [score]
    shown = "2+2? Assistant: " + held
    if written(shown) == held:  # without the column, the prompt itself says so
        assert format_tags([shown], [completion]) == [score]
    message = [{"role": "assistant", "content": completion}]
    assert format_tags([chat("2+2?", held)], [message]) == [score]


@pytest.mark.parametrize(
    ("reward", "held", "completion", "answer"),
    [
        ("exact_answer", "<answer>", "4</answer>", "4"),
        ("numeric_answer", "<think>\n2</think><answer>", "4</answer>", 4),
        ("last_number", "The answer is \\boxed{", "4} of 5", 4),
        ("choice", "\\boxed{", "B}", "B"),
        ("math_verify", "\\boxed{", "\\frac{1}{2}}", "1/2"),
    ],
)
def test_an_answer_that_the_prompt_opened_is_read(reward, held, completion, answer):
    found = resolve(reward)
    assert found(["2+2?"], [completion], answer=[answer], prefill=[held]) == [1.0]
    message = [{"role": "assistant", "content": completion}]
    assert found([chat("2+2?", held)], [message], answer=[answer]) == [1.0]


def test_language_is_of_the_thought_that_the_prompt_opened():
    pytest.importorskip("lingua", reason="the extra grpo_jax[language] is not installed")
    reward = resolve("language")
    german = "wir wollen die beiden Zahlen addieren</think>we should add both of the numbers"
    assert reward(["?"], [german], language=["en"], prefill=["<think>\n"]) == [0.0]
    english = "we should add both of the numbers"
    assert reward(["?"], [english], language=["en"], prefill=[NONE]) == [1.0]


def test_a_rewarder_hands_every_reward_the_prefill():
    def given(prompts, completions, prefill):
        return [float(prefill == ["<think>\n"] * 2)] * 2

    functions = {"format": format_tags, "given": given}
    problem = Problem(chat("2+2?"), {"answer": "4"})
    group = [["4</think><answer>4</answer>", "<think>4</think><answer>4</answer>"]]
    parts = Rewarder(functions, prefill=lambda prompt: "<think>\n")([problem], group).parts
    assert parts["format"].tolist() == [[1.0, 0.0]] and parts["given"].tolist() == [[1.0, 1.0]]
    assert Rewarder({"format": format_tags})([problem], group).parts["format"].tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("held", "turn", "left"),
    [
        ("", "<think> 4 </think> 4", "<think> 4 </think> 4"),
        ("<think>\n", "<think> 4 </think> <answer> 4 </answer>", "4 </think> <answer> 4 </answer>"),
        ("<think>\n", "<think>\n  4</think>4", "  4</think>4"),
        ("<think>", " <think> 4 </think>4", " 4 </think>4"),
        ("<think>\n", "4 </think> 4", "4 </think> 4"),
        ("<think>\n", "The answer is 4.", "The answer is 4."),
        ("<think>\nOkay", "<think>Two</think>4", "Two</think>4"),
        (NONE, "<think> 4 </think> <answer> 4 </answer>", "<answer> 4 </answer>"),
        (NONE, f"{NONE}4", "4"),
        (NONE, "The answer is 4.", "The answer is 4."),
        ("<think></think>", "<think>2</think>4", "4"),
        ("Let me see: ", "Let me see: 4", "4"),
        ("Let me see:", "It is 4", "It is 4"),
    ],
)
def test_what_is_left_to_write_of_a_worked_solution(held, turn, left):
    assert remainder(held, turn) == left
