"""The one extractor of final answers, and what the rewards that share it make of each form."""

from fractions import Fraction

import pytest

from grpo_jax.rewards import resolve
from grpo_jax.rewards.answers import boxed_answer, extract_boxed, stated
from grpo_jax.rewards.choices import choice
from grpo_jax.rewards.numbers import last_number, numeric_answer, read_number, vote, whole_number
from grpo_jax.rewards.text import final_answer


@pytest.mark.parametrize(
    ("completion", "text", "mark"),
    [
        ("7", "7", ""),
        ("7.", "7", ""),
        ("**12**", "12", ""),
        ("So\n\n$3/4$.\n", "3/4", ""),
        ("It is $\\sqrt{2}$.", r"\sqrt{2}", ""),
        (r"It is \(\sqrt{2}\).", r"\sqrt{2}", ""),
        ("It costs $5 and not $6", "It costs $5 and not $6", ""),
        (r"so $\boxed{12}$.", "12", "box"),
        (r"\boxed{\$36}", r"\$36", "box"),
        (r"\boxed{1} and then \boxed{2}.", "2", "box"),
        (r"$\boxed{1}$ and $\boxed{2}$.", "1, 2", "box"),
        (r"The final answer is: $\boxed{5}$. I hope it is correct.", "5", "box"),
        (r"\boxed{5}, so the final answer is $6$. I hope it is correct.", "6", "final"),
        ("The final answer is 5 gallons. The answer is 6.", "6", "answer"),
        (r"\boxed{} The answer is 5.", "5", "answer"),
        ("He sells 20. The answer is 9.\n#### 1,200", "1,200", "####"),
        ("#### Step 2\nThe answer is 9.", "9", "answer"),
        ("The answer is 12. I checked it 3 times.", "12", "answer"),
        ("The answer is: **5.5**.", "5.5", "answer"),
        ("**Answer:** 5", "5", "answer"),
        ("**Final Answer: 5**", "5", "answer"),
        ("Answer:\n\n\\[\nx = 5\n\\]\nwhich is right", "x = 5", "answer"),
        ("The answer to the second question is 5", "5", "answer"),
        ("<answer>7.</answer>", "7", "tags"),
        ("<answer>The answer is 7.</answer> or 8", "7", "answer"),
        (r"<answer>\boxed{7} of 8</answer> \boxed{9}", "7", "box"),
        (r"<think>\boxed{3}</think> It is 4.", "It is 4", ""),
        (r"<think>\boxed{3}</think>", "3", "box"),
        (r"<think>so \boxed{3}", "3", "box"),
        ([{"role": "assistant", "content": r"\boxed{5}"}], "5", "box"),
        ("", "", ""),
    ],
)
def test_what_a_completion_states(completion, text, mark):
    assert stated(completion)[:2] == (text, mark)


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
        (r"$\boxed5$", "5"),
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
    if " and " not in text:
        assert boxed_answer(text) == boxed


def test_boxes_of_nothing_are_no_element_of_a_list():
    for text in (r"\boxed{} and \boxed{2}", r"\boxed{2}, \boxed{ }", r"\boxed{}\boxed{2}"):
        assert boxed_answer(text) == "2"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            ("12", 12),
            ("12.0", 12),
            ("012", 12),
            ("+5", 5),
            (".5", Fraction(1, 2)),
            ("3.14.", 3.14),
        ),
        *(("3/4", 0.75), ("1 / 2", 0.5), ("1 1/2", 1.5), ("1\u00bd", 1.5), ("-1/2", -0.5)),
        *(
            (r"\frac{1}{2}", 0.5),
            (r"\dfrac12", 0.5),
            (r"-\frac{3}{4}", -0.75),
            (r"1\frac{1}{2}", 1.5),
        ),
        *(("5^2", 25), ("5\u00b2", 25), ("2^{10}", 1024), ("10^5", 100_000), ("2^-1", 0.5)),
        *(("1e5", 100_000), ("1E-1", Fraction(1, 10)), (r"3 \times 10^5", 300_000)),
        *(("10,000", 10_000), ("10{,}000", 10_000), (r"10\,000", 10_000), (r"10,\!000", 10_000)),
        *(("10\u202f000", 10_000), ("$1,234.50.", 1234.5), (r"\$36", 36), ("\u20ac5", 5)),
        *(("\u22125", -5), ("\u20135", -5), ("-$5", -5), ("$-5", -5), ("- 5", -5), ("x = -5", -5)),
        *(("50%", 50), (r"50\%", 50), (r"90^\circ", 90), ("90\u00b0", 90), ("**7**", 7)),
    ],
)
def test_a_number_in_each_form(text, value):
    assert read_number(text) == whole_number(text) == Fraction(str(value))


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("Tom has 12 apples left.", 12),
        ("$1,234,567.50 in all", 1_234_567.5),
        ("Rs.500", 500),
        ("15 - 3 = 12", 12),
        ("15-3", 3),
        ("15\u20133", 3),
        ("(8)-3", 3),
        ("1,2,3", 3),
        ("1,5", 5),
        ("1,2345", 2345),
        ("the 12th", 12),
        ("5 to 7\n", 7),
        ("25 cm^2", 25),
        (r"25\text{ cm}^2", 25),
        ("100m2", 100),
        ("3!", 3),
        ("1_0", 1),
        ("12:30", None),
        ("1.2.3", None),
        ("3/4/5", None),
        ("1/0", None),
        ("0^-1", None),
        ("9^99999", None),
        (r"2\sqrt{3}", None),
        (r"9\pi", None),
        ("3x^2", None),
        (r"\frac{x}{2}", None),
        (r"\sin 30", None),
        ("x^2", None),
        ("XDY2K", None),
        ("twelve", None),
        ("", None),
        ("nan", None),
        ("\u0663", None),
        ("9" * 10_000, None),
        ("1" + ",111" * 5_000, None),
    ],
)
def test_what_is_no_number_has_a_last_one_or_none(text, last):
    assert whole_number(text) is None
    assert read_number(text) == (None if last is None else Fraction(str(last)))


@pytest.mark.parametrize(
    ("completion", "last", "whole"),
    [
        ("12", True, True),
        ("He has 12.", True, False),
        ("12.5", False, False),
        ("12.0000001", False, True),
        ("-12", False, False),
        ("112", False, False),
        ("10, 11, 12", True, False),
        ("10, 11, 12, 13", False, False),
        ("The answer is 12, for 15 - 3 = 12 and 3 are gone", True, True),
        ("The answer is 12. Now 3 are gone.", True, True),
        ("The answer is easy. It is 12.", True, False),
        (r"So \boxed{12}, with 3 gone", True, True),
        (r"\boxed{x = 12}", True, True),
        (r"\boxed{12\text{ apples}}", True, False),
        (r"\boxed{15 - 3 = 12}", True, False),
        (r"\boxed{24-12}", False, False),
        (r"\boxed{5 \cdot 12}", False, False),
        (r"\boxed{12\sqrt{3}}", False, False),
        (r"<think>12</think><answer>13</answer>", False, False),
        ("<answer>12 apples</answer> of 15", True, False),
        ("<answer>12.</answer>", True, True),
        (r"<answer>\boxed{12} of 15</answer>", True, True),
        ("So 12\n#### 12", True, True),
        ("**12**", True, True),
        ([{"role": "assistant", "content": "12 apples"}], True, False),
        ("none", False, False),
    ],
)
@pytest.mark.parametrize("answer", ["12", 12, 12.0])
def test_the_rewards_that_read_a_number(completion, last, whole, answer):
    assert last_number(["p"], [completion], answer=[answer]) == [last]
    assert numeric_answer()(["p"], [completion], answer=[answer]) == [whole]


# Sentences that state 18, whatever else they name; that end in it; and that state another number.
SAY_18 = [
    *("The answer is 18 (3 times 6).", "The answer is 18, since each of the 3 children has 6."),
    *("The answer is $18 for 3 days.", "The final answer is 18 (3 x 6).", "Answer: 18 (3 x 6)"),
    *(
        "The answer would be 18. That is 3 more than 15.",
        "The answer should be 18.",
        "Answer: 18 m",
    ),
    *("So the answer must be 18, i.e. 3 more than 15.", "The correct answer has to be 18"),
    *("The answer is 18 apples, as each of 3 has 6.", "The answer is 18 because 3 times 6 is 18."),
    *("The answer will be 18 after 3 days.", "The answer is 18, which is 3 more than 15."),
    *("The answer is 18 - that is, 3 times 6.", "The answer is 18 out of 20.", "Answer: $18.00"),
    *("The answer is therefore 18, not 15.", "The answer comes to 18 for 3.", "The answer was 18."),
    *("My answer is 18, given the 3 children.", "Thus, the answer turns out to be 18."),
    *("The answer is approximately 18 (17.8 rounded).", "The answer is **18** (3 times 6)."),
    *(
        r"The answer is \(18\), since $3 \times 6 = 18$.",
        r"The answer is $18$ because $3 \cdot 6=18$",
    ),
    *("The answer is x = 18 where x is 3 times 6.", "The answer is 18 if 3 are lost."),
    *("The answer is exactly 18 miles per 3 hours.", "Answer: 18", "The answer's 18, not 15."),
    *("The answer is not 15, but 18.", "The answer isn't 15 but rather 18 (3 times 6)."),
    "So 18 is the final answer because 3 times 6 is it, not 3 times 5.",
    "18 was the answer because 3x6",
]
END_IN_18 = [
    *("The answer is 3 * 6 = 18.", "The answer is 3 x 6 or 18.", "The answer is 2 times 9, or 18"),
    *("The answer is 1/2 of 36, which is 18.", "The answer is 3 boxes of 6, that is 18."),
    *("The answer is 2 for each of 9, so 18.", "The answer is 2 per 9, for a total of 18."),
    *("The answer is that she has 18 apples.",),
]
SAY_ANOTHER = [
    *("The answer is 15 (3 less than 18).", "The answer is 15, since 18 - 3 are left."),
    *(
        "The answer is 15 because 33 - 18 is 15.",
        "The answer is 15 for 18 days.",
        "Answer: 15, not 18",
    ),
    *("The answer is 18, or 15.", "The answer is 18 and 15.", "The answer is x = 18, y = 15."),
    *("The answer isn't 18, but 15.", "15 is the answer because 18 - 3 is 15."),
    *(
        "The answer is 18 - 3 = 15.",
        "The answer is -18, as said.",
    ),
    *(
        "The answer should be 15 out of 18.",
        "The answer is 18.5 (18 rounded).",
        "Answer: 118 (18 + 100)",
    ),
    *(
        "The answer is 18, 15 and 12.",
        "The answer is 180, since 18 x 10.",
    ),
]


@pytest.mark.parametrize("name", ["last_number", "numeric_answer", "math_verify"])
def test_what_a_sentence_states_is_its_number_and_not_one_of_its_reason(name):
    def right(completions):
        return [c for c in completions if resolve(name)([None], [c], answer=["18"]) == [1.0]]

    assert right(SAY_18) == SAY_18
    assert name != "last_number" or right(END_IN_18) == END_IN_18
    assert right(SAY_ANOTHER) == []
    unread = ["The answer is 18 times 3, so 54."]
    assert name == "math_verify" or right(unread) == []  # where the library takes the first number


def test_a_tolerance_is_kept_and_what_is_no_number_refused():
    near = numeric_answer(tolerance=2e-3)
    assert near(["p"] * 3, ["0.1234", "0.121", "3"], answer=[0.12, 0.12, None]) == [0.0, 1.0, None]
    assert last_number(["p"] * 2, ["3", "3"], answer=[None, "$3"]) == [None, 1.0]
    for name in ("last_number", "numeric_answer"):
        for answer in ("three", "3 apples", "1,5", ""):
            with pytest.raises(ValueError, match=f"column answer: '{answer}' is not a number; val"):
                resolve(name)(["p"], ["3"], answer=[answer])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>1+1</think><answer>2.0</answer>", "2"),
        ("<answer>(8/2)-2</answer>", "(8/2)-2"),
        ("So the answer is \\boxed{1,200}.", "1200"),
        ("\\boxed{\\frac{1}{2}}", "0.5"),
        ("The answer is 1/2.", "0.5"),
        ("\\boxed{-\\frac{1}{3}}", "-1/3"),
        ("<answer>0.05</answer>", "0.05"),
        ("\\boxed{\\sqrt{2}}", "\\sqrt{2}"),
        ("She has 12 apples, then 9 apples left.", "9"),
        ("The answer is easy: 9 apples.", "9"),
        ("That is $3.50.", "3.5"),
        ("hello", "hello"),
        ("9" * 10_000, "9" * 10_000),
    ],
)
def test_completions_of_one_answer_vote_together(text, expected):
    assert vote(text) == expected


CHOSEN = [
    *("B", "B.", "(B)", "**B**", "$B$", "Option B", "(B) Paris", "B. Paris", "I think\nB"),
    *("<answer>B</answer>", "<answer> (B) </answer>", "<answer>B. Paris</answer>"),
    *("<answer>\nB\n</answer>", "<answer>B because it is.</answer>"),
    *(r"so \boxed{B}", r"\boxed{\text{B}}", r"\boxed{\textbf{(B)}}", r"\boxed{\text{B. Paris}}"),
    *(r"<answer>\boxed{\text{B}}</answer>", "Answer: **B**", "**Answer:** B", "**Answer: (B)**"),
    *("The answer is: B", "The answer is (B).", "The answer is option B.", "The answer is $B$."),
    *("The answer is B because A is wrong.", "The answer is B, Paris", "The answer is B (Paris)."),
    *("Answer:\nB", "ANSWER: B", "Answer: B) Paris", "The correct answer is:\n\n**B. Paris**"),
    *("The correct option is **B**.", "It's **B**, not A", "The correct choice is B"),
    *("Answer: A? No. The answer is B", "The answer is B. I hope this answer is helpful."),
    *("<think>The answer is A.</think>\nB", "The correct answer would be B.", "B is the answer."),
    *(
        "The answer should be (B).",
        "The answer must be B.",
        "The answer is therefore B.",
        "Hence, B.",
    ),
    *("The answer is B!", "The answer is 'B'.", "Answer: [[B]]", "The answer is (B) and not (A)."),
    *("Thus, (B) is correct.", "So the answer has to be **B**", "The answer is clearly option B."),
    *("I choose B.", "So I would go with B.", "We pick option B", "I'd select (B)"),
    *("The answer's B.", "b", "(b)", "Answer: b", "<answer>b</answer>", r"\boxed{\text{b}}"),
    "The answer isn't A, but B.",
]
NOT_CHOSEN = [
    *("", "A cat sat", "B is wrong, but C", "Because", "A, B, C", "A. Paris\nB. Rome"),
    *("<answer>Because</answer>", "<answer>A or B</answer>", "<answer>B or C</answer>"),
    *("<answer>B C</answer>", "<answer>B, C</answer>", "<answer>B. C.</answer>"),
    *(r"\boxed{A, B}", r"\boxed{AB}", r"\boxed{\text{B or C}}", r"\boxed{B} or \boxed{C}"),
    *(
        "the answer is Banana",
        "The answer is B or C",
        "The answer is B and C.",
        "The answer is B/C",
    ),
    *("The answer should be A or B.", "A or B is the answer", "The answer must be Bach."),
    *("The answer is B. Or the answer is A or C.", "The answer is not B", "**B** or **C**"),
    *("I would not choose B.", "I choose between B and C", "I pick A or B", "a b", "be"),
]


@pytest.mark.parametrize(
    ("completion", "right"), [*((c, 1.0) for c in CHOSEN), *((c, 0.0) for c in NOT_CHOSEN)]
)
def test_choice(completion, right):
    assert choice([None], [completion], answer=["B"]) == [right]


@pytest.mark.parametrize(
    "text",
    ["The answer is A lot of work.", "<answer>A B C D</answer>", "<answer>A. B. C.</answer>"],
)
def test_an_article_or_a_list_is_no_choice(text):
    assert choice([None] * 2, [text] * 2, answer=["A", "D"]) == [0.0, 0.0]


def test_choice_abstains_and_refuses():
    assert choice([None], ["B"], answer=[None]) == [None]
    assert choice([None], ["(C)"], answer=["(C)"]) == [1.0]
    with pytest.raises(ValueError, match="column answer: 'Paris' is not a choice; valid"):
        choice([None], ["B"], answer=["Paris"])


@pytest.mark.parametrize(
    ("completion", "message"),
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
def test_final_answer(completion, message):
    assert final_answer(completion) == message
