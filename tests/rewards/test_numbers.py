from decimal import Decimal

import pytest

from grpo_jax.rewards.numbers import last_number, read_number, vote


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", "12"),
        ("Tom has 12 apples left.", "12"),
        ("12.", "12"),
        ("12.0", "12"),
        ("012", "12"),
        ("It costs $12", "12"),
        ("$1,234,567.50 in all", "1234567.5"),
        (".5 litres", "0.5"),
        ("15 - 3 = 12", "12"),
        ("15-3", "3"),
        ("(8)-3", "3"),
        ("it is -5", "-5"),
        ("it is \u22125 degrees", "-5"),
        ("-$5 or $-5", "-5"),
        ("-$5", "-5"),
        ("1,2,3", "3"),
        ("1,23", "23"),
        ("1,2345", "2345"),
        ("the 12th", "12"),
        ("50%", "50"),
        ("3.14.", "3.14"),
        ("**7**", "7"),
        ("5 to 7\n", "7"),
        ("twelve", None),
        ("", None),
        ("\u0663", None),
        ("9" * 10_000, "9" * 10_000),
    ],
)
def test_the_last_number_of_a_text(text, value):
    assert read_number(text) == (None if value is None else Decimal(value))


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("He has 12.", 1.0),
        ("12.5", 0.0),
        ("12.0000001", 0.0),
        ("-12", 0.0),
        ("112", 0.0),
        ("10, 11, 12", 1.0),
        ("10, 11, 12, 13", 0.0),
        ("The answer is 12, for 15 - 3 = 12 and 3 are gone", 0.0),
        (r"So \boxed{12}, with 3 gone", 1.0),
        (r"<think>12</think><answer>13</answer>", 0.0),
        ("<answer>12 apples</answer> of 15", 1.0),
        (r"<answer>\boxed{12} of 15</answer>", 1.0),
        ([{"role": "assistant", "content": "12 apples"}], 1.0),
        ("none", 0.0),
    ],
)
@pytest.mark.parametrize("answer", ["12", 12, 12.0])
def test_only_the_last_number_counts(completion, score, answer):
    assert last_number(["p"], [completion], answer=[answer]) == [score]


def test_it_abstains_without_an_answer_and_refuses_one_that_is_no_number():
    assert last_number(["p"] * 2, ["3", "3"], answer=[None, "$3"]) == [None, 1.0]
    with pytest.raises(ValueError, match="column answer: 'three' is not a number; valid: 1234"):
        last_number(["p"], ["3"], answer=["three"])
    with pytest.raises(ValueError, match="column answer: '3 apples' is not a number"):
        last_number(["p"], ["3"], answer=["3 apples"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>1+1</think><answer>2.0</answer>", "2"),
        ("<answer>(8/2)-2</answer>", "(8/2)-2"),
        ("So the answer is \\boxed{1,200}.", "1200"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("She has 12 apples, then 9 apples left.", "9"),
        ("That is $3.50.", "3.5"),
        ("hello", "hello"),
    ],
)
def test_completions_of_one_answer_vote_together(text, expected):
    assert vote(text) == expected
