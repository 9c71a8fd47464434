import re
from collections import Counter

import pytest

from grpo_jax import tokenizers
from grpo_jax.rewards.form import format_tags
from grpo_jax.tasks import make_task
from grpo_jax.tasks.templates import TEMPLATES
from grpo_jax.tasks.word_problems import KINDS, NAMES, THINGS


def bare(problem):
    """The problem without its people and things: what must not be on both sides."""
    words = re.sub("|".join(NAMES), "NAME", problem.prompt)
    return problem.columns["kind"], re.sub("|".join(THINGS), "THINGS", words)


def test_train_and_heldout_share_no_story_with_the_same_numbers():
    options = {"max_number": 3, "max_factor": 3}  # 4 kinds, 5 stories, 4 pairs: 80 problems
    with pytest.raises(ValueError, match="distinct held-out problems were found") as caught:
        make_task("word_problems", **options, heldout_size=80)
    size = int(str(caught.value).split("only ")[1].split()[0])
    task = make_task("word_problems", **options, heldout_size=size)
    train = {bare(task.train[i]) for i in range(3000)}
    heldout = {bare(p) for p in task.heldout}
    assert len(heldout) == size and train.isdisjoint(heldout) and len(train | heldout) == 80


def test_the_numbers_of_a_problem_give_its_answer_by_its_kind():
    task = make_task("word_problems")
    problems = [*(task.train[i] for i in range(400)), *task.heldout]
    for problem in problems:
        a, b = sorted(map(int, re.findall(r"\d+", problem.prompt)), reverse=True)
        kind, answer = problem.columns["kind"], int(problem.columns["answer"])
        expected = {"add": a + b, "take_away": a - b, "groups": a * b, "share": a / b}[kind]
        assert answer == expected >= 2
        assert (a <= 40 and b <= 20) if kind in ("add", "take_away") else (a <= 81 and b <= 9)
    counts = Counter(bare(p) for p in problems)
    assert {kind for kind, _ in counts} == set(KINDS) and len(task.heldout) == 256


@pytest.mark.parametrize("template", TEMPLATES)
def test_worked_solutions_are_right_and_a_template_changes_prompts_only(template):
    plain, task = make_task("word_problems"), make_task("word_problems", template=template)
    for i in range(50):
        problem = task.train[i]
        solution = task.solve(problem)
        answer = problem.columns["answer"]
        assert problem.columns == plain.train[i].columns
        assert plain.train[i].prompt in str(problem.prompt)
        assert task.accuracy(None, [solution], answer=[answer]) == [1.0]
        assert format_tags(None, [solution]) == [float(template in ("tags", "r1_zero"))]
        left, sign, right = re.search(r"(\d+) ([-+*/]) (\d+) = ", solution).groups()
        assert eval(f"{left} {sign} {right}") == int(answer)
        if task.symbols is not None:
            tokenizer = tokenizers.char_tokenizer(task.symbols)
            assert len(tokenizers.encode(tokenizer, problem.prompt + solution)) > 0
    assert (task.symbols is None) == (template in ("chat", "boxed"))


def test_a_solution_reads_as_in_the_docstring():
    task = make_task("word_problems")
    solution = task.solve(task.heldout[0])
    assert re.fullmatch(r"\d+ [-+*/] \d+ = (\d+)\. The answer is \1\.", solution)


def test_heldout_ignores_the_seed_and_an_index_gives_one_problem():
    a, b, c = (make_task("word_problems", seed=s) for s in (0, 0, 1))
    assert [a.train[i] for i in range(30)] == [b.train[i] for i in reversed(range(30))][::-1]
    assert [a.train[i] for i in range(30)] != [c.train[i] for i in range(30)]
    assert a.heldout == c.heldout


@pytest.mark.parametrize("options", [{"max_number": 1}, {"max_factor": 1000}])
def test_options_out_of_range_are_named(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.*: valid: 2 to 999"):
        make_task("word_problems", **options)
