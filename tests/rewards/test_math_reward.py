import builtins
import sys
import threading

import numpy as np
import pytest
from golds import GOLDS
from math_verify import parse, verify

from grpo_jax.rewards import Rewarder, resolve
from grpo_jax.rewards.latex import PLAIN, shape
from grpo_jax.rewards.math import math_verify, unread
from grpo_jax.tasks import Problem

# Where a published answer stands.
PLACES = (
    r"\boxed{%s}",
    "Hence it is\n\\[\\boxed{%s}.\\]\nAnd so on, 3 times.",
    "<think> 5? </think> <answer> $%s$ </answer>",
    "<answer>%s</answer>",
    "The final answer is $%s$. I hope it is correct.",
    "The answer is: $%s$.",
    "So it is\n\n$%s$",
    "It is $%s$.",
    "%s",
)
# Forms in which the library reads a part of the answer only (see the docstring of `math_verify`).
HALF_READ = ("cases", "array", r"1\,000", "2516_", "11101_")


def by_the_library(completion, gold):
    """What the library itself says, of a gold between delimiters as it asks for."""
    two = (parse(text, parsing_timeout=None) for text in (f"\\boxed{{{gold}}}", completion))
    return verify(*two, timeout_seconds=None)


@pytest.mark.parametrize(("gold", "right", "wrong"), GOLDS, ids=[gold for gold, _, _ in GOLDS])
def test_an_answer_in_the_manner_of_math(gold, right, wrong):
    places = [place.replace("%s", gold) for place in PLACES]
    assert math_verify(None, places, answer=[gold] * len(places)) == [1.0] * len(places)
    for form in right:
        assert math_verify(None, [rf"so $\boxed{{{form}}}$."], answer=[gold]) == [1.0], form
    for form in wrong:
        assert math_verify(None, [f"\\boxed{{{form}}}"], answer=[gold]) == [0.0], form
    if not any(name in gold for name in HALF_READ):
        assert not by_the_library(f"\\boxed{{{wrong[0]}}}", gold)


# Completions that are right, most of them by the library's own word too.
BARE = [
    *(("7", c) for c in ("7.", "**7**", "<answer>7.</answer>", "7 apples", "It is 7, I think.")),
    *(("7", c) for c in ("The answer is 7 because 3 + 4 is.", "3 + 4 = 7", "x = 7", "7 cm", "7%")),
    *(("7", c) for c in ("Answer: 7\n\nThis answer is helpful.", r"\boxed{7", r"\boxed 7")),
    *(("7", c) for c in (r"$x = 7$", r"\boxed{7 \text{ or } 7}", r"\boxed{7} so \boxed{7}")),
    *(("12", c) for c in ("**12**", "12.0", "$12", "Total: $12.", "*12*", "12 dollars.")),
    *((r"\frac{3}{4}", c) for c in ("3/4.", "0.75", "**3/4**", "It is 3/4.", r"$\frac34$")),
    *(("1,2", c) for c in (r"\boxed{1} and \boxed{2}", "$1$ and $2$", "<answer>$2, 1$</answer>")),
    (r"1,2", r"\boxed{1} is one root, and the other is \boxed{2}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"$\begin{pmatrix} 1 \\ 2 \end{pmatrix}$"),
    ("12.5", "12,5"),
    ("It rises by $7$ of 9, so it is $25$.", r"\boxed{25}"),
    (r"\boxed{1} cup and \boxed{2} bins", r"\boxed{1, 2}"),
]


@pytest.mark.parametrize(("gold", "completion"), BARE)
def test_a_bare_answer_or_one_in_words(gold, completion):
    assert math_verify(None, [completion], answer=[gold]) == [1.0]


def test_golds_that_the_library_does_not_read_are_found():
    golds = [gold for gold, _, _ in GOLDS]
    none = [gold for gold in golds if "vmatrix" in gold or "array" in gold]
    assert unread([*golds, r"\frac{1}{", "{", "42"]) == [*none, r"\frac{1}{", "{"]
    plain = [gold for gold in golds if shape(gold) == PLAIN]
    assert len(plain) > 100  # which are not asked about: they were read, above
    assert not set(none) & set(plain)


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        ("72", "72"),
        ("The answer is 72.", "72"),
        ("She has $30, spends $12 and keeps $18.", "18"),
        ("1,234", 1234),
        ("-3.50", "-3.5"),
        (r"\boxed{\frac{1}{2}}", "1/2"),
        (r"so $\frac12$. The answer is \boxed{0.5}", r"\frac{1}{2}"),
        (r"<think>2</think> <answer> \frac{2}{4} </answer>", r"\frac{1}{2}"),
        ("<answer>12 apples</answer>", "12"),
        (r"<answer>$1 + x^2$</answer>", "x^2+1"),
        ("<answer>1+x^2</answer>", "x^2+1"),
        ("<answer>Navin</answer>", "Navin"),
        (r"\boxed{\text{Monday}}", r"\text{Monday}"),
        (r"\boxed{(3, \frac{\pi}{2})}", r"\left( 3, \frac{\pi}{2} \right)"),
        (r"\boxed{\sqrt{12}}", r"2\sqrt{3}"),
        (r"\boxed{\{2, 1\}}", r"\{1, 2\}"),
        ([{"role": "assistant", "content": r"\boxed{5}"}], "$5$"),
    ],
)
def test_equal_answers_score(completion, gold):
    assert math_verify(["p"], [completion], answer=[gold]) == [1.0]


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        ("73", "72"),
        ("-72", "72"),
        ("", "72"),
        ("<answer></answer>", "72"),
        ("<answer>71</answer> 72", "72"),
        (r"\boxed{71} or \boxed{72}", "72"),
        (r"\boxed{72}, no, \boxed{71}", "72"),
        (r"\boxed{72} \boxed{71}", "71"),
        ("70, 71, 72", "72"),
        ("<answer>71 or 72</answer>", "72"),
        ("The answer is 71, 72.", "72"),
        ("72\n#### 71", "72"),
        (r"<think>\boxed{72}</think> It is 71.", "72"),
        (r"\boxed{2516_7}", "2516_8"),
        (r"\boxed{0}", r"1\,000"),
        (r"\boxed{x}", "72"),
        (r"\boxed{\frac{1}{3}}", "0.33"),
        (r"\boxed{(\frac{\pi}{2}, 3)}", r"(3, \frac{\pi}{2})"),
        (r"\frac{", "72"),
        ("(" * 500, "72"),
    ],
)
def test_other_answers_do_not(completion, gold):
    assert math_verify(["p"], [completion], answer=[gold]) == [0.0]


def test_it_abstains_without_an_answer_and_sets_no_signals():
    scores = []
    thread = threading.Thread(
        target=lambda: scores.extend(math_verify(["p"] * 2, ["1", "1"], answer=[1, None]))
    )
    thread.start()
    thread.join()
    assert scores == [1.0, None]


def test_in_a_worker_what_never_ends_is_nan_alone(caplog):
    with Rewarder({"math": resolve("math_verify")}, workers=1, timeout_s=1.0) as rewarder:
        problem = Problem("p", {"answer": r"\frac{1}{2}"})
        scores = rewarder([problem], [["0.5", r"\boxed{9^{9^{9^{9}}}}", "2"]])
    np.testing.assert_array_equal(scores.parts["math"], [[1, np.nan, 0]])
    assert scores.timeouts == 1 and not caplog.records


def test_a_missing_library_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "math_verify":
            raise ModuleNotFoundError("No module named 'math_verify'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "grpo_jax.rewards.math")
    with pytest.raises(
        ValueError, match=r"reward 'math_verify' needs .*'grpo_jax\[math\]' \(No mod"
    ):
        resolve("math_verify")
