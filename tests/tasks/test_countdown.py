import itertools
import random
from fractions import Fraction

import pytest

from grpo_jax import tokenizers
from grpo_jax.rewards.form import format_tags
from grpo_jax.tasks import Problem, make_task
from grpo_jax.tasks.countdown import evaluate, reaches, solve


def reachable(numbers):
    """Every value of the rule in the docstring, by plain enumeration, fractions included."""
    if len(numbers) == 1:
        return {Fraction(numbers[0])}
    values = set()
    for order in itertools.permutations(numbers):
        for cut in range(1, len(order)):
            for a in reachable(order[:cut]):
                for b in reachable(order[cut:]):
                    values |= {a + b, a - b, a * b} | ({a / b} if b else set())
    return values


def key(problem):
    return tuple(sorted(problem.columns["numbers"])), problem.columns["target"]


@pytest.mark.parametrize("count", [2, 3])
def test_every_problem_is_solvable_by_brute_force(count):
    task = make_task("countdown", count=count, heldout_size=20)
    for problem in [*(task.train[i] for i in range(40)), *task.heldout]:
        numbers, target = problem.columns["numbers"], problem.columns["target"]
        assert problem.prompt == f"{' '.join(map(str, numbers))}>{target}="
        assert len(numbers) == count and 1 <= target <= 60 and max(numbers) <= 12
        assert target in reachable(numbers)


def test_train_and_heldout_share_no_problem():
    options = {"count": 2, "max_number": 4, "max_target": 10}
    with pytest.raises(ValueError, match="only 7 distinct held-out"):
        make_task("countdown", **options, heldout_size=1000)
    task = make_task("countdown", **options, heldout_size=7)
    train = {key(task.train[i]) for i in range(2000)}
    heldout = {key(p) for p in task.heldout}
    assert len(heldout) == 7 and train.isdisjoint(heldout)
    every = {
        ((a, b), int(v))
        for a, b in itertools.combinations_with_replacement(range(1, 5), 2)
        for v in reachable((a, b))
        if v.denominator == 1 and 1 <= v <= 10
    }
    assert train | heldout == every


def test_an_index_always_gives_the_same_problem_and_heldout_ignores_the_seed():
    a, b, c = (make_task("countdown", seed=s) for s in (0, 0, 1))
    assert [a.train[i] for i in range(30)] == [b.train[i] for i in reversed(range(30))][::-1]
    assert [a.train[i] for i in range(30)] != [c.train[i] for i in range(30)]
    assert a.heldout == c.heldout
    assert len({key(p) for p in a.heldout}) == 512


@pytest.mark.parametrize("count", [2, 3, 4])
def test_worked_solutions_are_right_well_formed_and_encodable(count):
    task = make_task("countdown", count=count, heldout_size=10)
    tokenizer = tokenizers.char_tokenizer(task.symbols)
    for i in range(100):
        problem = task.train[i]
        solution = task.solve(problem)
        columns = {name: [value] for name, value in problem.columns.items()}
        assert task.accuracy([problem.prompt], [solution], **columns) == [1.0]
        assert format_tags(None, [solution]) == [1.0]
        assert 0 < len(tokenizers.encode(tokenizer, problem.prompt + solution)) < 160


def test_a_trace_states_only_true_steps():
    task = make_task("countdown")
    for i in range(50):
        trace = solve(task.train[i]).removeprefix("<think>").split("</think>")[0]
        steps = [s for s in trace.split() if s != "x"]
        assert len(steps) % 2 == 0 and trace.count("x") <= 2
        for step in steps:
            expression, value = step.split("=")
            assert evaluate(expression)[0] == int(value)


def test_solve_refuses_what_has_no_solution():
    with pytest.raises(ValueError, match=r"'1 1>60=' has no solution"):
        solve(Problem("1 1>60=", {"numbers": [1, 1], "target": 60}))


@pytest.mark.parametrize(
    ("text", "value", "used"),
    [
        ("(12-7)*3", 15, [12, 7, 3]),
        (" 3 * 12 - 21 ", 15, [3, 12, 21]),
        ("1/3/(2-5)", Fraction(-1, 9), [1, 3, 2, 5]),
        ("2-3-4*5", -21, [2, 3, 4, 5]),
    ],
)
def test_expressions_are_evaluated_exactly(text, value, used):
    assert evaluate(text) == (value, used)


def test_fractions_on_the_way_are_exact():
    assert reaches("8/(3-8/3)", [8, 3, 8, 3], 24)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "__import__('os')",
        "9**9**9",
        "7//3*12",
        "3+7+12+0",
        "3+7",
        "3+7+7+12",
        "24",
        "3*7+12/0",
        "12/(3-3)+7",
        "-(3-7)*12",
        "+3*7+12",
        "(12-7)*\u0663",
        "(12-7)*\uff13",
        "(12-7)(3)",
        "(12-7)*3.0",
        "(12-7)*03",
        "(12-7)*3\n",
        "(12-7)*3=15",
        "(12-7)*True",
        "0x3*(12-7)",
        "1_2-7+3",
        "[3][0]*(12-7)",
        "(12-7)*3 if 1 else 0",
        "lambda: 15",
        "(" * 40 + "(12-7)*3",
        "(" * 60 + "(12-7)*3" + ")" * 60,
        "(" * 100_000,
        "9" * 10_000,
        "1+" * 5000 + "1",
        "-" * 90 + "3",
    ],
)
def test_no_attack_scores(text):
    # "\n" at the end is stripped and so is harmless: only that may be right.
    assert reaches(text, [3, 7, 12], 15) == (text == "(12-7)*3\n")


def test_random_text_never_raises():
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(rng.choices("0123+-*/() ", k=rng.randint(0, 30)))
        assert reaches(text, [999, 998], 997) is False


@pytest.mark.parametrize("options", [{"count": 1}, {"max_number": 0}, {"max_target": 0}])
def test_options_out_of_range_are_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.*: valid: "):
        make_task("countdown", **options)
