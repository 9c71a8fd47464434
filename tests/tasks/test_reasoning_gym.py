import builtins
import sys

import pytest

from grpo_jax import tokenizers
from grpo_jax.rewards import Rewarder
from grpo_jax.tasks import make_task
from grpo_jax.tasks.reasoning_gym import _accuracy


@pytest.fixture(scope="module")
def library():
    reason = "the extra grpo_jax[reasoning_gym] is not installed"
    return pytest.importorskip("reasoning_gym", reason=reason)


def test_train_and_heldout_share_no_question(library):
    # One term of one digit: ten questions in all, so enumeration reaches every one.
    task = make_task(
        "reasoning_gym", min_terms=1, max_terms=1, min_digits=1, max_digits=1, heldout_size=20
    )
    train = {task.train[i].prompt for i in range(500)}
    heldout = {task.heldout[i].prompt for i in range(20)}
    assert heldout and train.isdisjoint(heldout) and len(train | heldout) == 10


def test_questions_and_scores_are_the_librarys_own(library):
    task = make_task("reasoning_gym", dataset="chain_sum", max_digits=2, seed=3)
    data = library.create_dataset("chain_sum", max_digits=2, seed=3, size=100_000)
    questions = {data[i]["question"] for i in range(40)}
    problems = [task.train[i] for i in range(20)]
    assert {p.prompt for p in problems} <= questions
    for p in problems:
        columns = {name: [value] * 3 for name, value in p.columns.items()}
        completions = [
            f"so <answer>{p.columns['answer']}</answer>",
            f" {p.columns['answer']}\n",
            "no",
        ]
        expected = [1.0, 1.0, data.score_answer("no", p.columns["entry"])]
        assert task.accuracy([p.prompt] * 3, completions, **columns) == expected
        assert task.solve(p) == p.columns["answer"]


def test_an_index_always_gives_the_same_problem(library):
    one, two = (make_task("reasoning_gym", dataset="gcd") for _ in range(2))
    assert [one.heldout[i] for i in range(9)] == [two.heldout[i] for i in reversed(range(9))][::-1]
    with pytest.raises(IndexError):
        one.heldout[128]


@pytest.mark.parametrize("dataset", ["gcd", "futoshiki", "propositional_logic", "circuit_logic"])
def test_the_symbols_cover_questions_and_answers(library, dataset):
    task = make_task("reasoning_gym", dataset=dataset)
    tokenizer = tokenizers.char_tokenizer(task.symbols)
    for i in range(3):
        problem = task.train[i]
        text = problem.prompt + str(problem.columns["answer"])
        assert tokenizers.decode(tokenizer, tokenizers.encode(tokenizer, text)) == text


def test_a_dataset_without_answers_has_no_solutions(library):
    assert make_task("reasoning_gym", dataset="rush_hour").solve is None


def test_scores_in_a_worker_process_and_survives_text_the_scorer_chokes_on(library):
    task = make_task("reasoning_gym", dataset="gcd")
    problem = task.train[0]
    with Rewarder({"accuracy": task.accuracy}, workers=1) as rewarder:
        scores = rewarder([problem], [[problem.columns["answer"], "", "٣/0"]])
    assert scores.parts["accuracy"][0, 0] == 1.0
    assert (scores.parts["accuracy"][0, 1:] < 0.1).all() and scores.timeouts == 0


def test_a_scorer_that_raises_is_told_of():
    def scorer(answer, entry):
        return 1.0 / 0.0

    with pytest.warns(UserWarning, match="raised ZeroDivisionError; such answers count as wrong"):
        assert _accuracy(scorer, ["p"], ["c"], entry=[{}]) == [0.0]


def test_bad_options_are_named(library):
    with pytest.raises(ValueError, match="dataset 'chain_sun'; did you mean 'chain_sum'"):
        make_task("reasoning_gym", dataset="chain_sun")
    with pytest.raises(TypeError, match="unknown field 'max_term'; did you mean 'max_terms'"):
        make_task("reasoning_gym", max_term=3)
    with pytest.raises(ValueError, match=r"'chain_sum' refuses .*min_terms must be positive"):
        make_task("reasoning_gym", min_terms=0)


def test_a_missing_library_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "reasoning_gym":
            raise ModuleNotFoundError("No module named 'reasoning_gym'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for module in [m for m in sys.modules if m.split(".")[0] == "reasoning_gym"]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'grpo_jax\[reasoning_gym\]'"):
        make_task("reasoning_gym")
