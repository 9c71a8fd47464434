import builtins
import sys
import threading

import numpy as np
import pytest

from grpo_jax.rewards import Rewarder, resolve
from grpo_jax.rewards.math import math_verify
from grpo_jax.tasks import Problem


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
