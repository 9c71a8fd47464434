import json
import random

import pytest

from grpo_jax.rewards import resolve
from grpo_jax.tasks import make_task
from grpo_jax.tasks.templates import TEMPLATES

TRAIN = [
    {
        "question": "Lea sells 20 pies at $60 each. What does she earn?",
        "answer": "Lea earns 20*60=$<<20*60=1200>>1,200.\nThat is all.\n#### 1,200",
    },
    {
        "question": "It is 3 degrees and cools by 8. How cold is it?",
        "answer": "It is 3-8=<<3-8=-5>>-5 degrees.\n#### -5",
    },
]
TEST = [
    {"question": "Half of 5?", "answer": "It is 5/2=<<5/2=2.5>>2.5\n#### 2.5"},
    {"question": TRAIN[1]["question"], "answer": "#### -5"},
]


def write(folder, **files):
    for name, records in files.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    return str(folder)


def test_records_become_problems_with_worked_solutions(tmp_path):
    task = make_task("gsm8k", path=write(tmp_path, train=TRAIN, test=TEST))
    [problem] = task.train
    assert problem.prompt == TRAIN[0]["question"] and task.overlap == 1
    assert problem.columns["answer"] == "1200"
    assert task.solve(problem) == "Lea earns 20*60=$1,200.\nThat is all. The answer is 1200."
    assert [p.columns["answer"] for p in task.heldout] == ["2.5", "-5"]
    assert {"<think>", "H", "?", "\n"} <= set(task.symbols)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_template_does_not_change_what_is_held_out(tmp_path, template):
    task = make_task("gsm8k", path=write(tmp_path, train=TRAIN, test=TEST), template=template)
    assert len(task.train) == 1 and len(task.heldout) == 2
    assert (task.symbols is None) == (template in ("chat", "boxed"))
    for problem in [*task.train, *task.heldout]:
        answer = problem.columns["answer"]
        assert task.accuracy(None, [task.solve(problem)], answer=[answer]) == [1.0]


def test_paths_and_the_reward_can_be_given(tmp_path):
    write(tmp_path, mine=TRAIN, yours=TEST[:1])
    task = make_task(
        "gsm8k",
        path=str(tmp_path / "mine.jsonl"),
        heldout_path=str(tmp_path / "yours.jsonl"),
        reward="exact_answer",
    )
    assert len(task.train) == 2 and task.overlap == 0
    assert task.accuracy(None, ["2.5", "2.50"], answer=["2.5"] * 2) == [1.0, 0.0]
    with pytest.raises(FileNotFoundError, match=r"no train\.jsonl and test\.jsonl; valid: a fol"):
        make_task("gsm8k", path=str(tmp_path))


@pytest.mark.parametrize(
    ("record", "match"),
    [
        (
            {"question": "q", "answer": "so 5"},
            r"'answer' ends in 'so 5'; valid: .* '#### <number>'",
        ),
        ({"question": "q", "answer": "#### five"}, "ends in '#### five'"),
        ({"question": "q", "answer": 5}, "column 'answer' is 5; valid: text"),
        ({"question": " ", "answer": "#### 5"}, "column 'question' is \" \"; valid: text"),
        ({"qestion": "q", "answer": "#### 5"}, "unknown column 'question'; did you mean 'qestion'"),
        (["q"], "a list; valid: an object"),
    ],
)
def test_a_bad_line_is_named(tmp_path, record, match):
    path = write(tmp_path, train=[TRAIN[0], record], test=TEST)
    with pytest.raises(ValueError, match=rf"train\.jsonl:2: .*{match}"):
        make_task("gsm8k", path=path)


@pytest.mark.parametrize("answer", ["so it is\n####", "#### ", "", None])
def test_a_record_without_an_answer_is_dropped(tmp_path, capsys, answer):
    path = write(tmp_path, train=[*TRAIN, {"question": "q", "answer": answer}], test=TEST)
    assert len(make_task("gsm8k", path=path).train) == 1
    [warning] = capsys.readouterr().err.splitlines()
    assert "warning: 1 of 5 records" in warning and "train.jsonl:3: column 'answer'" in warning
    with pytest.raises(ValueError, match=r"train\.jsonl:3: column 'answer'"):
        make_task("gsm8k", path=path, unanswered="refuse")


def test_the_published_files(shared, capsys):
    path = shared / "data" / "gsm8k"
    if not path.is_dir():
        pytest.skip(f"the published GSM8K is not at {path}")
    task = make_task("gsm8k", path=str(path))
    assert (len(task.train), len(task.heldout), task.overlap) == (7473, 1319, 0)
    assert not capsys.readouterr().err  # none without an answer, none that is not read
    rewards = [resolve(name) for name in ("math_verify", "last_number", "numeric_answer")]
    published = [
        json.loads(line)["answer"]
        for side in ("train", "test")
        for line in (path / f"{side}.jsonl").read_text().splitlines()
    ]
    problems = list(zip(published, [*task.train, *task.heldout], strict=True))
    # Those whose solutions speak of answers; and others.
    chosen = [pair for pair in problems if "answer" in pair[0] or "%." in pair[0]]
    for given, problem in [*chosen[:60], *random.Random(0).sample(problems, 60)]:
        answer, solution = problem.columns["answer"], task.solve(problem)
        assert "<<" not in solution and "####" not in solution
        said = given.rpartition("####")[2].strip()  # with commas
        right = [given, solution, answer, f"**{said}**", f"The answer is ${said}."]
        right += [f"So $\\boxed{{{said}}}$.", f"<think>{given}</think> <answer> {said} </answer>"]
        for reward in rewards:
            assert reward(None, right, answer=[answer] * 7) == [1.0] * 7
        wrong = [text.replace(said, str(int(answer) + 1)) for text in right[3:]]
        assert rewards[1](None, wrong, answer=[answer] * 4) == [0.0] * 4
