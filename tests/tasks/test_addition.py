import random

import pytest

from grpo_jax import tokenizers
from grpo_jax.rewards.form import format_tags
from grpo_jax.tasks import make_task
from grpo_jax.tasks.addition import solve
from grpo_jax.tasks.problem import Problem


def pair(problem):
    return tuple(sorted(map(int, problem.prompt.rstrip("=").split("+"))))


def test_train_and_heldout_share_no_pair():
    task = make_task("addition", digits=1, heldout_size=5)
    train = {pair(task.train[i]) for i in range(3000)}
    # Every pair of the 55 there are is on one side only, and the two sides together are all.
    everything = make_task("addition", digits=1, heldout_size=len_heldout())
    heldout = {pair(p) for p in everything.heldout}
    assert train.isdisjoint(heldout)
    assert len(train | heldout) == 55
    assert {pair(p) for p in task.heldout} <= heldout


def len_heldout():
    with pytest.raises(ValueError, match="distinct held-out problems were found") as caught:
        make_task("addition", digits=1, heldout_size=55)
    return int(str(caught.value).split("only ")[1].split()[0])


def test_heldout_has_no_repeats_and_is_the_same_for_every_seed():
    a, b = make_task("addition", seed=1), make_task("addition", seed=2)
    assert len({pair(p) for p in a.heldout}) == len(a.heldout) == 512
    assert list(a.heldout) == list(b.heldout)
    assert [a.train[i] for i in range(20)] != [b.train[i] for i in range(20)]


def test_an_index_always_gives_the_same_problem():
    one, two = make_task("addition"), make_task("addition")
    order = random.Random(0).sample(range(len(one.train)), 50)
    forward = [one.train[i] for i in order]
    assert [two.train[i] for i in reversed(order)] == forward[::-1]
    with pytest.raises(IndexError):
        one.train[len(one.train)]


@pytest.mark.parametrize("digits", [1, 2, 4])
def test_worked_solutions_are_right_well_formed_and_encodable(digits):
    task = make_task("addition", digits=digits, heldout_size=4)
    tokenizer = tokenizers.char_tokenizer(task.symbols)
    problems = [task.train[i] for i in range(300)]
    solutions = [solve(p) for p in problems]
    answers = [p.columns["answer"] for p in problems]
    assert set(task.accuracy(prompts=None, completions=solutions, answer=answers)) == {1.0}
    assert set(format_tags(None, solutions)) == {1.0}
    for problem, solution in zip(problems, solutions, strict=True):
        a, b = problem.prompt[:-1].split("+")
        assert len(a) == len(b) == digits
        assert int(problem.columns["answer"]) == int(a) + int(b)
        assert len(tokenizers.encode(tokenizer, problem.prompt + solution)) > 0
    assert max(len(tokenizers.encode(tokenizer, s)) for s in solutions) < 48


def test_a_solution_shows_every_column():
    solution = "<think>7+9+0=16 4+8+1=13 3+5+1=09</think><answer>936</answer>"
    assert solve(Problem("347+589=")) == solution
    with pytest.raises(ValueError, match="'1-2=' is not an addition"):
        solve(Problem("1-2="))


@pytest.mark.parametrize("answer", ["935", "0936", "936.", "", "<answer>936", "347+589"])
def test_a_wrong_answer_scores_nothing(answer):
    assert make_task("addition").accuracy(["347+589="], [answer], answer=["936"]) == [0.0]


def test_digits_out_of_range_are_refused():
    with pytest.raises(ValueError, match="digits=0: valid: 1 to 18"):
        make_task("addition", digits=0)
