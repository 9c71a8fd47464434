"""One call of a reward: how it is called, what it may return, and whose fault it is."""

import asyncio
import copy
import functools
import inspect
import os
import re
import signal
from array import array
from collections import Counter, deque
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from grpo_jax.rewards import Rewarder, RewardError
from grpo_jax.rewards.columns import misread
from grpo_jax.tasks import Problem

PROBLEMS = [Problem("p0", {"answer": "a"}), Problem("p1", {"answer": "b"})]


def raise_on_b(completions, **columns):
    return [1.0 / (c != "b") for c in completions]


@pytest.mark.parametrize("workers", [0, 1])
def test_whatever_a_reward_raises_is_its_fault_in_one_line(workers):
    class Awkward(Exception):
        def __str__(self):
            raise self.args[0]

    def explain(error):
        error.add_note("a note")
        return error

    errors = [
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit("over"), "GeneratorExit: over"),
        (SystemExit(3), "SystemExit: 3"),
        (asyncio.CancelledError(), "asyncio.exceptions.CancelledError"),
        (ValueError("first\nsecond\nlast"), "ValueError: first"),
        (explain(KeyError("column")), "KeyError: 'column'"),
        (SyntaxError("bad", ("f.py", 3, 1, "x =", 3, 4)), r"SyntaxError: bad \(f.py, line 3\)"),
        (Awkward(ValueError()), ".*Awkward"),
        (Awkward(KeyboardInterrupt()), ".*Awkward"),
        (ValueError("a" * 100_000), "ValueError: a{300,600}…"),
        (TimeoutError("mine"), "TimeoutError: mine"),
    ]

    def reward(prompts, completions):
        raise errors[int(prompts[0])][0]

    with Rewarder({"mine": reward}, workers=workers) as rewarder:
        for i, (_, shown) in enumerate(errors):
            with pytest.raises(RewardError) as caught:
                rewarder([Problem(str(i))], [["a"]])
            message = str(caught.value)
            assert re.match(rf"reward 'mine' raised {shown} at .*test_calls.py:\d+; ", message)
            assert "\n" not in message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_reward_runs_here_is_not_its_fault(number):
    def leave(number, frame):
        raise SystemExit(128 + number)

    before = signal.signal(number, leave)
    try:
        reward = lambda completions: os.kill(os.getpid(), number)  # noqa: E731
        with pytest.raises(SystemExit, match=str(128 + number)):
            Rewarder({"mine": reward})(PROBLEMS[:1], [["a"]])
        assert signal.getsignal(number) is leave
    finally:
        signal.signal(number, before)


def test_what_is_not_asked_is_not_computed():
    def reward(prompts, completions, tests):
        assert prompts[0] == "asks"
        return [1.0] * len(completions)

    problems = [
        Problem("asks", {"tests": 1, "rewards": ["mine"]}),
        Problem("does not", {"rewards": ("other",)}),
        Problem("asks nothing", {"rewards": []}),
    ]
    rewarder = Rewarder({"mine": reward, "other": lambda completions: [2.0] * len(completions)})
    parts = rewarder(problems, [["a", "b"]] * 3).parts
    nan = np.nan
    np.testing.assert_array_equal(parts["mine"], [[1, 1], [nan, nan], [nan, nan]])
    np.testing.assert_array_equal(parts["other"], [[nan, nan], [2, 2], [nan, nan]])


@pytest.mark.parametrize("names", ["mine", [0.5, 1], 5, {"mine": 1}, [None]])
def test_a_column_rewards_that_holds_no_names_is_refused(names):
    rewarder = Rewarder({"mine": lambda completions: [1.0]})
    with pytest.raises(
        ValueError, match=r"column 'rewards' of the prompt 'p' is .*; valid: a list"
    ):
        rewarder([Problem("p", {"rewards": names})], [["a"]])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_reward_that_raises_names_itself_and_the_record(workers):
    with Rewarder({"mine": raise_on_b}, workers=workers) as rewarder:
        with pytest.raises(RewardError) as caught:
            rewarder(PROBLEMS, [["a", "c"], ["a", "b"]])
        message = str(caught.value)
        assert "'mine' raised ZeroDivisionError: float division by zero at " in message
        line = inspect.getsourcelines(raise_on_b)[1] + 1
        assert f"test_calls.py:{line}; prompt: 'p1'; completion: 'b'" in message
        assert rewarder(PROBLEMS, [["a"], ["c"]]).parts["mine"].tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize(
    ("returned", "match"),
    [
        ([1.0], "returned 1 values; valid: 2 finite numbers or None"),
        (None, "returned NoneType"),
        (["1", 2], "returned the value '1'"),
        ([1.0, float("nan")], "returned the value nan"),
        ([1.0, [2.0]], r"returned the value \[2.0\]"),
        ([1j, 1], "returned the value 1j"),
        ({0: 1.0, 1: 2.0}, "returned dict; valid: 2 finite numbers"),
        (Counter([0, 1]), "returned Counter"),
        ({0, 1}, "returned set"),
        ({0: 1, 1: 2}.keys(), "returned dict_keys"),
        ("12", "returned str"),
        (b"12", "returned bytes"),
        (np.ones((2, 2)), "returned ndarray of 2 dimensions"),
        (np.ones((2, 1)), "returned ndarray of 2 dimensions"),
        (np.float32(1), "returned float32 of 0 dimensions"),
        (np.array(["1", "2"]), "returned the value "),
        (np.array([1j, 2]), "returned the value "),
        (np.array([1, 2], "datetime64[D]"), "returned the value "),
        ([1e39, 1.0], r"returned the value 1e\+39 beyond float32; valid: 2 finite numbers"),
        ([1.0, -1e300], r"returned the value -1e\+300 beyond float32"),
        ([3.4028236e38, 1.0], "beyond float32"),
        ([10**400, 1.0], "returned the value 1000"),
    ],
)
def test_a_wrong_return_value_is_named(returned, match):
    rewarder = Rewarder({"odd": lambda completions, **_: returned})
    with pytest.raises(RewardError, match=match):
        rewarder(PROBLEMS[:1], [["a", "b"]])


@pytest.mark.parametrize(
    "values",
    [
        *([True, False], np.array([1, 0]), (np.float32(1), np.int8(0)), deque([1, 0])),
        *(array("d", [1, 0]), iter([1, 0]), {"a": 1.0, "b": 0.0}.values(), range(1, -1, -1)),
        *([Fraction(1), Decimal(0)], [np.array(1.0), np.float16(0)]),
    ],
)
def test_numbers_of_any_kind_are_accepted(values):
    scores = Rewarder({"kind": lambda completions, **_: values})(PROBLEMS[:1], [["a", "b"]])
    np.testing.assert_array_equal(scores.parts["kind"], [[1, 0]])


def test_a_reward_is_called_as_trl_calls_it():
    seen = {}

    def reward(prompts, completions, completion_ids, **columns):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, **columns)
        return [0.0] * len(prompts)

    Rewarder({"reward": reward})(PROBLEMS[:1], [["x", "y"]], [[[5], [6, 7]]])
    assert seen == {
        "prompts": ["p0", "p0"],
        "completions": ["x", "y"],
        "ids": [[5], [6, 7]],
        "answer": ["a", "a"],
    }


def test_a_chat_prompt_gets_chat_completions():
    seen = []
    messages = [{"role": "user", "content": "hi"}]
    reward = lambda completions, **_: seen.extend(completions) or [0.0]  # noqa: E731
    Rewarder({"reward": reward})([Problem(messages)], [["yo"]])
    assert seen == [[{"role": "assistant", "content": "yo"}]]


def test_a_reward_may_leave_out_the_columns_it_does_not_use():
    scores = Rewarder({"short": lambda completions: [2.0]})(PROBLEMS[:1], [["x"]])
    assert scores.parts["short"].tolist() == [[2.0]]


class Asynchronous:
    async def __call__(self, completions, **columns):
        return [0.0] * len(completions)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_asynchronous_reward_is_refused(workers):
    later = Asynchronous()
    rewards = [later, later.__call__, functools.partial(later.__call__), lambda **c: later(**c)]
    with Rewarder(dict(zip("abcd", rewards, strict=True)), workers=workers) as rewarder:
        for name in "abcd":
            match = f"reward '{name}' is asynchronous .*; valid: .* asyncio.run; prompt: 'p0'"
            with pytest.raises(RewardError, match=match):
                rewarder(PROBLEMS[:1], [["x"]], names=[name])


@pytest.mark.parametrize("prompt", ["p", [{"role": "user", "content": "p"}]])
def test_what_a_reward_changes_others_read_unchanged(prompt):
    def change(prompts, completions, completion_ids):
        size = len(prompts)
        for one in (*prompts, *completions, *completion_ids):
            if isinstance(one, list):
                one.clear()
        for values in (prompts, completions, completion_ids):
            values.clear()
        return [0.0] * size

    def read(prompts, completions, completion_ids):
        seen.append((prompts, completions, completion_ids))
        return [0.0] * len(prompts)

    def fail(completions):
        completions.clear()
        return [1 / 0]

    seen, given = [], (copy.deepcopy([Problem(prompt)]), [["x", "y"]], [[[5], [6, 7]]])
    Rewarder({"first": read, "change": change, "last": read})(*given)
    assert seen[0] == seen[1] and given[0] == [Problem(prompt)]
    assert seen[0][0] == [prompt] * 2 and seen[0][2] == [[5], [6, 7]]
    with pytest.raises(RewardError, match=r"raised ZeroDivisionError.*; completion: .*x"):
        Rewarder({"fail": fail})(*given)


def test_what_only_trl_gives_is_named():
    for reward in (lambda trainer_state: [0.0], lambda completions, *, log_metric: [0.0]):
        with pytest.raises(
            RewardError, match=r"'odd' needs TRL's '(tra|log).*with a default; prom"
        ):
            Rewarder({"odd": reward})(PROBLEMS[:1], [["x"]])
    assert "needs TRL's 'completion_ids'" in misread(lambda completion_ids: [0.0], {})


def test_a_missing_column_is_named():
    rewarder = Rewarder({"short": lambda completions, tests: [2.0]})
    with pytest.raises(RewardError, match=r"needs the column 'tests'; there are \['answer'"):
        rewarder(PROBLEMS[:1], [["x"]])


def test_mismatched_input_is_refused():
    rewarder = Rewarder({})
    with pytest.raises(ValueError, match="2 problems but completions for 1"):
        rewarder(PROBLEMS, [["a"]])
    with pytest.raises(ValueError, match=r"same number of completions; got \[1, 2\]"):
        rewarder(PROBLEMS, [["a"], ["a", "b"]])
