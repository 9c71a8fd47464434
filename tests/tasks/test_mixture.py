"""Several tasks as one: the order of their problems, and which task judges and solves each."""

from collections import Counter

import pytest

from grpo_jax.rewards.evaluate import Rewarder
from grpo_jax.tasks import make_task

ADDITION = {"digits": 1, "heldout_size": 6, "train_size": 50}
PARTS = {
    "sums": {"name": "addition", **ADDITION},
    "word_problems": {"share": 2, "heldout_size": 3, "train_size": 40},
}


@pytest.fixture(scope="module")
def task():
    return make_task("mixture", parts=PARTS)


def test_problems_come_in_turn_and_short_parts_begin_anew(task):
    singly = {
        "sums": make_task("addition", **ADDITION),
        "word_problems": make_task("word_problems", heldout_size=3, train_size=40),
    }
    assert len(task.train) == 150  # 50 rounds of one sum and two word problems
    found = [task.train[i] for i in range(150)]
    assert Counter(p.columns["kind"] for p in found) == {"sums": 50, "word_problems": 100}
    for kind, problems in singly.items():
        mine = [p.prompt for p in found if p.columns["kind"] == kind]
        size = len(problems.train)
        assert mine == [problems.train[i % size].prompt for i in range(len(mine))]
    with pytest.raises(IndexError, match="problem 150 of 150"):
        task.train[150]


def test_held_out_are_all_parts_in_turn(task):
    kinds = [p.columns["kind"] for p in task.heldout]
    assert kinds == ["sums", "word_problems"] * 3 + ["sums"] * 3
    trained = {p.prompt for p in (task.train[i] for i in range(len(task.train)))}
    assert not trained & {p.prompt for p in task.heldout}


def test_a_part_without_a_share_is_held_out_alone():
    parts = {"sums": PARTS["sums"] | {"share": 0}, "word_problems": PARTS["word_problems"]}
    parts["sums"]["rewards"] = ("format",)
    task = make_task("mixture", parts=parts)
    assert len(task.train) == 40
    assert {p.columns["kind"] for p in map(task.train.__getitem__, range(40))} == {"word_problems"}
    named = {p.columns["kind"]: p.columns.get("rewards") for p in task.heldout}
    assert named == {"sums": ["format"], "word_problems": None}


def test_each_part_judges_and_solves_its_own(task):
    problems = list(task.heldout[:4])
    completions = [[task.solve(p), "no"] for p in problems]
    with Rewarder({"accuracy": task.accuracy}, workers=1, timeout_s=20) as rewarder:
        scores = rewarder(problems, completions).parts["accuracy"]
    assert scores.tolist() == [[1.0, 0.0]] * 4
    assert {*"0123456789+=", "<think>"} <= set(task.symbols)


def test_a_part_may_have_a_reward_that_takes_no_other_columns(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"prompt": "{i}?", "more": 1}}\n' for i in range(20)))

    def reward(completions):
        return [0.5]

    reward.at_start = (tmp_path / "loaded").touch
    own = {"name": "jsonl", "path": str(path), "reward": reward}
    task = make_task("mixture", parts={"own": own, "sums": PARTS["sums"]})
    problem = next(p for p in task.heldout if p.columns["kind"] == "own")
    assert Rewarder({"accuracy": task.accuracy})([problem], [["x"]]).parts["accuracy"] == 0.5
    task.accuracy.at_start()
    assert (tmp_path / "loaded").exists()


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"addition": {}}, "valid: two tasks or more"),
        ({"addition": {"share": -1}, "countdown": {}}, r"parts.addition.share=-1: valid"),
        ({"addition": {"share": 0}, "countdown": {"share": 0}}, "every share is 0"),
        ({"addition": {}, "sums": {}}, "unknown task 'sums'"),
        ({"addition": {"rewards": "mine"}, "countdown": {}}, "addition.rewards='mine': valid: a l"),
        ({"addition": {"rewards": 5}, "countdown": {}}, "addition.rewards=5: valid: a list"),
    ],
)
def test_bad_parts_are_refused(parts, named):
    with pytest.raises(ValueError, match=named):
        make_task("mixture", parts=parts)
