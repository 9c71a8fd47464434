import json

import pytest

from grpo_jax.tasks import make_task
from grpo_jax.tasks.templates import TEMPLATES

RECORDS = [
    {
        "problem": "What is $1/2 + 1/4$?",
        "level": "Level 1",
        "type": "Algebra",
        "solution": "It is $\\boxed{\\frac{2}{4}}$ and a quarter, so $\\boxed{\\frac{3}{4}}$.",
    },
    {
        "problem": "Which numbers square to one?",
        "level": "Level 2",
        "type": "Algebra",
        "solution": "$x = \\pm 1$: the set \\[\\boxed{\\{-1, 1\\}}.\\]",
    },
    {
        "problem": "On what day?",
        "level": "Level ?",
        "type": "Prealgebra",
        "solution": "It is \\boxed{\\text{Monday}}.",
    },
]
ANSWERS = ["\\frac{3}{4}", "\\{-1, 1\\}", "\\text{Monday}"]


@pytest.fixture
def published(tmp_path):
    """A folder as published: train and test, a folder for each type, a file for each problem."""
    for number, record in enumerate(RECORDS):
        side = "test" if number == 2 else "train"
        file = tmp_path / "MATH" / side / record["type"].lower() / f"{number}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record, indent=1))
    return tmp_path / "MATH"


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_published_folder(published, template):
    task = make_task("math", path=str(published), template=template)
    problems = [*task.train, *task.heldout]
    assert [p.columns["answer"] for p in problems] == ANSWERS
    assert len(task.heldout) == 1
    for problem, record in zip(problems, RECORDS, strict=True):
        assert record["problem"] in str(problem.prompt).replace("\\\\", "\\")
        assert {n: problem.columns[n] for n in ("solution", "level", "type")} == {
            n: record[n] for n in ("solution", "level", "type")
        }
        solution, answer = task.solve(problem), problem.columns["answer"]
        assert (solution == record["solution"]) == (template not in ("tags", "r1_zero"))
        scores = task.accuracy(None, [solution, f"\\boxed{{{answer}}}", "7"], answer=[answer] * 3)
        assert scores == [1.0, 1.0, 0.0]


def test_json_lines(tmp_path):
    for name, records in (("train", RECORDS[:2]), ("test", [RECORDS[2], RECORDS[0]])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    task = make_task("math", path=str(tmp_path))
    assert [p.columns["answer"] for p in task.train] == ANSWERS[1:2] and task.overlap == 1
    assert "\\" in task.symbols and task.train[0].prompt == "Which numbers square to one?"


@pytest.mark.parametrize("side", ["train", "test"])
@pytest.mark.parametrize("solution", ["so \\boxed{5", "\\boxed{\\; }.", "so 5", " ", None])
def test_a_record_without_an_answer_is_dropped(published, capsys, side, solution):
    file = published / side / "algebra" / "7.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(RECORDS[1] | {"solution": solution}))
    task = make_task("math", path=str(published))
    assert [p.columns["answer"] for p in [*task.train, *task.heldout]] == ANSWERS
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: 1 of 4 records have no answer and are dropped (unanswered=")
    assert f"{side}/algebra/7.json: column 'solution' " in warning
    with pytest.raises(ValueError, match=r"algebra/7\.json: column 'solution' (has no answer|is)"):
        make_task("math", path=str(published), unanswered="refuse")
    with pytest.raises(ValueError, match=r"unknown unanswered 'dorp'; did you mean 'drop'"):
        make_task("math", path=str(published), unanswered="dorp")


def test_answers_that_are_nothing_to_the_reward_are_counted(published, capsys):
    file = published / "train" / "algebra" / "1.json"
    file.write_text(json.dumps(RECORDS[1] | {"solution": "so \\boxed{\\frac{1}{}}"}))
    make_task("math", path=str(published))
    [warning] = capsys.readouterr().err.splitlines()
    assert "math_verify reads 1 of 3 answers as nothing" in warning
    assert repr("\\frac{1}{}") in warning
    make_task("math", path=str(published), reward="exact_answer")
    assert not capsys.readouterr().err


def test_a_bad_record_is_named(published):
    file = published / "train" / "algebra" / "1.json"
    file.write_text('{"problem": "p",\n "solution" 3}')
    with pytest.raises(ValueError, match=r"algebra/1\.json: not JSON: .* at line 2 column 13"):
        make_task("math", path=str(published))
    file.write_text(json.dumps({"problem": "p"}))
    with pytest.raises(ValueError, match=r"algebra/1\.json: unknown column 'solution'"):
        make_task("math", path=str(published))


def test_a_folder_without_problems_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train: no \.json files; valid: a folder of"):
        make_task("math", path=str(tmp_path))
