import json
import random

import pytest

from grpo_jax.tasks import make_task
from grpo_jax.tasks.templates import TEMPLATES


def record(number, **changes):
    return {
        "ID": f"chal-{number}",
        "Body": f"Each pack costs {number}.0 dollars. There is a discount of 2 dollars",
        "Question": "What does a pack cost?",
        "Equation": f"( {number}.0 - 2.0 )",
        "Answer": number - 2.0,
        "Type": "Subtraction",
    } | changes


def write(folder, records):
    (folder / "SVAMP.json").write_text(json.dumps(records, indent=4))
    return str(folder)


@pytest.mark.parametrize("template", TEMPLATES)
def test_records_become_problems_held_out_by_id(tmp_path, template):
    path = write(tmp_path, [record(n) for n in (701, 10, 1000, 700, 1001)])
    task = make_task("svamp", path=path, template=template)
    assert [p.columns["answer"] for p in task.train] == ["8", "698", "999"]
    assert [p.columns["answer"] for p in task.heldout] == ["699", "998"]
    for problem in [*task.train, *task.heldout]:
        answer = problem.columns["answer"]
        scores = task.accuracy(None, [task.solve(problem), "7"], answer=[answer] * 2)
        assert scores == [1.0, 0.0]


def test_a_problem_reads_as_published(tmp_path):
    half = record(2, Equation="( ( 1.0 + 4.0 ) / 2.0 )", Answer=2.5)
    path = write(tmp_path, [record(10), half])
    task = make_task("svamp", path=f"{path}/SVAMP.json", heldout_first=10, heldout_last=10)
    assert task.heldout[0].prompt == (
        "Each pack costs 10.0 dollars. There is a discount of 2 dollars What does a pack cost?"
    )
    assert task.train[0].columns["type"] == "Subtraction"
    assert task.solve(task.train[0]) == "( 1 + 4 ) / 2 = 2.5. The answer is 2.5."
    assert task.solve(task.heldout[0]) == "10 - 2 = 8. The answer is 8."


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"ID": "1"}, "record 2: column 'ID' is '1'; valid: chal-<number>"),
        ({"Answer": "8"}, "record 2: column 'Answer' is '8'; valid: a number"),
        ({"Answer": True}, "record 2: column 'Answer' is True; valid: a number"),
        ({"Body": ""}, "record 2: column 'Body' is \"\"; valid: text"),
        ({"Equation": None}, "record 2: column 'Equation' is null; valid: text"),
    ],
)
def test_a_bad_record_is_named(tmp_path, bad, match):
    path = write(tmp_path, [record(10), record(11, **bad)])
    with pytest.raises(ValueError, match=rf"SVAMP\.json: {match}"):
        make_task("svamp", path=path)


@pytest.mark.parametrize("answer", [None, ""])
def test_a_record_without_an_answer_is_dropped(tmp_path, capsys, answer):
    path = write(tmp_path, [record(10), record(11, Answer=answer), record(701)])
    assert len(make_task("svamp", path=path).train) == 1
    [warning] = capsys.readouterr().err.splitlines()
    assert "warning: 1 of 3 records" in warning and "SVAMP.json: record 2: column 'An" in warning
    with pytest.raises(ValueError, match=r"SVAMP\.json: record 2: column 'Answer' is "):
        make_task("svamp", path=path, unanswered="refuse")


def test_a_bad_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"SVAMP\.json: no such file"):
        make_task("svamp", path=str(tmp_path))
    with pytest.raises(ValueError, match=r"SVAMP\.json: a dict; valid: a list of objects"):
        make_task("svamp", path=write(tmp_path, record(10)))
    with pytest.raises(ValueError, match=r"SVAMP\.json: no held-out problems of 1 records; valid"):
        make_task("svamp", path=write(tmp_path, [record(10)]))


def test_the_published_file(shared):
    path = shared / "data" / "svamp"
    if not path.is_dir():
        pytest.skip(f"the published SVAMP is not at {path}")
    task = make_task("svamp", path=str(path))
    assert (len(task.train), len(task.heldout), task.overlap) == (700, 300, 0)
    for problem in random.Random(0).sample([*task.train, *task.heldout], 200):
        answer = problem.columns["answer"]
        completions = [f"It is {answer}.", task.solve(problem), f"{answer}1"]
        assert task.accuracy(None, completions, answer=[answer] * 3) == [1.0, 1.0, 0.0]
