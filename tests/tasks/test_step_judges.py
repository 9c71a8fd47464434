"""Judges of single steps on completions that were judged by hand."""

import pytest

from grpo_jax.tasks import JUDGED_STEPS, TASKS, Problem, make_task
from grpo_jax.tasks.steps import equations


def marked(steps, text):
    """The steps' last characters and their rewards, for a reader."""
    return [(text[:end].split()[-1], reward) for end, reward in steps]


SUM = Problem("347+589=")
GOOD = "<think>7+9+0=16 4+8+1=13 3+5+1=09</think><answer>936</answer>"


@pytest.mark.parametrize(
    ("text", "rewards"),
    [
        (GOOD, [1, 1, 1]),
        (GOOD.replace("936", "935"), [1, 1, 1]),  # the outcome does not count here
        (GOOD.replace("=13", "=14"), [1, 0, 1]),
        (GOOD.replace("9+0=16", "9+1=17"), [0, 1, 1]),  # true, but not of this sum
        ("<think>7+9+0=15 4+8+0=12 3+5+1=09</think>", [0, 0, 1]),
        ("<think>4+8+1=13 7+9+0=16 3+5+1=09</think>", [0, 0, 1]),  # in another order
        ("<think>7+9+0=16 4+8+1=13 3+5+1=09 0+0+0=00", [1, 1, 1, 0]),  # one too many
        ("7+9+0=16 4+8+1<answer>1 2", [1, 0]),
        ("<think></think>7+9+0=16", []),
        ("<answer>936</answer>", []),
        ("", []),
    ],
)
def test_a_column_of_an_addition_is_right_in_its_place(text, rewards):
    assert [reward for _, reward in make_task("addition").steps(SUM, text)] == rewards


def test_a_column_ends_with_its_last_character():
    steps = make_task("addition").steps(SUM, GOOD)
    assert [GOOD[:end][-8:] for end, _ in steps] == ["7+9+0=16", "4+8+1=13", "3+5+1=09"]


@pytest.mark.parametrize(
    ("trace", "rewards"),
    [
        ("12+7=19 19-3=16", [1, 1]),
        ("12+7=18 18-3=15", [0, 0]),  # what does not hold makes nothing
        ("12+7=19 12-3=9", [1, 0]),  # 12 is used up
        ("12+7=19 x 12-7=5 5*3=15", [1, 1, 1]),
        ("12+7=19 x 12+7=19 19-3=16", [1, 1]),  # no step a second time
        ("12/3=4 7/4=2", [1, 0]),
        ("3-7=-4 -4+12=8", [1, 1]),
        ("12+12=24 hm", [0, 0]),
    ],
)
def test_a_move_of_countdown_holds_and_takes_what_is_there(trace, rewards):
    task = make_task("countdown")
    problem = Problem("3 7 12>15=", {"numbers": [3, 7, 12], "target": 15})
    text = f"<think>{trace}</think><answer>1+1=2</answer>"
    assert [reward for _, reward in task.steps(problem, text)] == rewards


def test_equal_numbers_may_be_moved_alike():
    problem = Problem("5 5 5 5>20=", {"numbers": [5, 5, 5, 5], "target": 20})
    steps = make_task("countdown", count=4).steps(problem, "5+5=10 5+5=10 10+10=20 5/0=1 x 5+5=10")
    assert [reward for _, reward in steps] == [1, 1, 1, 0]


@pytest.mark.parametrize("name", ["addition", "countdown"])
def test_worked_solutions_take_right_steps(name):
    task = make_task(name)
    for problem in map(task.train.__getitem__, range(200)):
        steps = task.steps(problem, task.solve(problem))
        assert steps and all(reward == 1 for _, reward in steps)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("It is 48/2 = 24, and 48+24 = 73.", [("24", 1), ("73", 0)]),
        (r"(1 + 2) \times $5 = $15", [("$15", 1)]),
        ("20*60=$1,200.\n3-8=-5 degrees", [("20*60=$1,200", 1), ("3-8=-5", 1)]),
        ("2+3*4=14, 2*3*4=24", [("2+3*4=14", 1), ("2*3*4=24", 1)]),
        ("100/3=33.33 100/3=33 0.5x10=5", [("100/3=33.33", 1), ("100/3=33", 0), ("0.5x10=5", 1)]),
        ("1+1=2 1 + 1 = 2 (1+1=2)", [("1+1=2", 1)]),  # said before
        ("- 5 + 3 = 8\n- 8 - 9 = -1", [("8", 1), ("-1", 1)]),  # a list
        ("5+3=8+2=10", [("5+3=8+2=10", 1)]),  # only the second stands between numbers
        ("5/0=0", [("5/0=0", 0)]),
        ("3x + 10 + 5 = 30, 50*20%=10, f(5+3)*2=16, 2=2, 09+1=10, 5 apples + 3 * 2 = 11", []),
    ],
)
def test_an_equation_between_numbers_is_a_step(text, steps):
    assert marked(equations(Problem(""), text), text) == steps


@pytest.mark.parametrize("piece", ["1+", "1 + ", "1+ ", "( ", "1 ", "1)", "1,111", "-1 x "])
def test_a_long_text_takes_no_long_time(piece):
    assert equations(Problem(""), piece * 20_000) == []  # quadratic, it would be minutes


def test_a_mixture_asks_the_part_that_a_problem_is_of():
    task = make_task("mixture", parts={"addition": {}, "countdown": {}})
    for problem in task.heldout[:2]:
        steps = task.steps(problem, task.solve(problem))
        assert steps and all(reward == 1 for _, reward in steps)
    other = make_task("mixture", parts={"addition": {}, "word_problems": {}})
    assert other.steps is None


def test_the_tasks_that_are_named_are_those_that_judge():
    options = {"mixture": {"parts": {"addition": {}, "countdown": {}}}}
    options |= {name: {} for name in ("addition", "countdown", "programs", "word_problems")}
    made = {name: make_task(name, **chosen).steps for name, chosen in options.items()}
    assert {n for n, steps in made.items() if steps} == set(JUDGED_STEPS) - {"gsm8k"}
    assert set(JUDGED_STEPS) <= TASKS.keys()
