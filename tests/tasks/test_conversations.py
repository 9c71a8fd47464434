"""Answers and beginnings of an assistant's message, in a table written by hand."""

import pytest

from grpo_jax.tasks.conversations import is_answer

BEGINNINGS = [
    ("Step 1: 2 + 2", "2"),
    ("We need (3 + 1) - 2", "2"),
    ("Sure, step 1:", "1"),
    ("Sure, let me start with step 1.", "1"),
    ("Sure! Step 1. We add", "1"),
    ("There are 4 ways:", "4"),
    ("There are 4 ways to do this. First,", "4"),
    ("We are given 120 apples and", "120"),
    ("1. Add the numbers", "1"),
    ("Of the 2 cases, we begin with case 2.", "2"),
    ("Let me think about Paris step by step.", "Paris"),
    ("Let me consider option B:", "B"),
    ("A good start is to draw it.", "A"),
    ("No problem, let me see.", "No"),
    ("12 apples are given. Now we", "12"),
    ("18 apples were bought, so we add.", "18"),
    ("The answer is", "5"),
    ("The answer is:", "5"),
    ("The final answer is \\boxed{", "5"),
    ("The answer is not obvious, so let us look closer.", "5"),
    ("The answer is found in step 2:", "2"),
    ("To find the answer: first, add.", "5"),
    ("Answer: Let me think.", "5"),
    ("The sum of 5 and 3 is", "5"),
    ("5 + 3 =", "5"),
    ("<think>The total is 5.", "5"),
    ("<think>5 and 3 are 8.</think>\n<answer>", "8"),
    ("```python\ndef f(x):", "f"),
    ("Two and", "Two and two are four, so the sum is 4."),
    ("Let me think step by step.", None),
    ("", "5"),
]
ANSWERS = [
    ("The total is 1,234.", 1234),
    ("The total is 1234.", "1,234"),
    ("It is paris.", "Paris"),
    ("The answer is 5.", None),
    ("The final answer is **5**.", None),
    ("Answer: B", None),
    ("So the answer is (C).", None),
    ("The answer is Paris.", None),
    ("The answer is 18. I hope that helps!", None),
    ("2 + 2 = 4", "4"),
    ("2 + 2 = 4, so we are done.", "4"),
    ("5", 5),
    ("$36.", "36"),
    ("It costs $36.", "36"),
    ("yes", "Yes"),
    ("18 apples are left.", "18"),
    ("Paris is the capital of France.", "Paris"),
    ("First add. Then the sum is **12**.", "12"),
    ("So \\boxed{4}", "four"),
    ("<think>.</think><answer>5</answer>", "4"),
    ("<think>2 and 2.</think> It is 4.", "4"),
    ("2 and 2.\n#### 5", "4"),
    ("Sure. Two and two are four, so the sum is 4. Bye", "Two and two are four, so the sum is 4."),
]


@pytest.mark.parametrize(("content", "answer"), BEGINNINGS)
def test_a_beginning_is_to_be_continued(content, answer):
    assert not is_answer(content, [answer])


@pytest.mark.parametrize(("content", "answer"), ANSWERS)
def test_an_answer_is_no_beginning(content, answer):
    assert is_answer(content, [answer])
