import builtins
import json
import re

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from grpo_jax.rewards import Rewarder
from grpo_jax.rewards.form import format_tags
from grpo_jax.rewards.text import exact_answer
from grpo_jax.tasks import make_task
from grpo_jax.tasks.jsonl import NEED_ANSWER
from grpo_jax.tasks.loader import batches
from grpo_jax.tasks.templates import TEMPLATES, make_template


def write(path, records):
    path.write_text("".join(f"{json.dumps(r)}\n" for r in records))
    return str(path)


@pytest.fixture
def records():
    return [{"prompt": f"q{i}", "answer": str(i), "level": i % 3} for i in range(200)]


def test_the_split_is_disjoint_complete_and_stable(tmp_path, records):
    task = make_task("jsonl", path=write(tmp_path / "a.jsonl", records))
    train, heldout = ({p.prompt for p in side} for side in (task.train, task.heldout))
    assert train.isdisjoint(heldout) and len(train | heldout) == 200
    assert 8 <= len(heldout) <= 35
    backwards = make_task("jsonl", path=write(tmp_path / "b.jsonl", records[::-1]))
    assert {p.prompt for p in backwards.heldout} == heldout
    assert task.train[0].columns.keys() == {"answer", "level"}
    assert task.solve is None


def test_heldout_prompts_are_removed_from_train_and_counted(tmp_path, records):
    task = make_task(
        "jsonl",
        path=write(tmp_path / "train.jsonl", [*records, records[3]]),
        heldout_path=write(tmp_path / "test.jsonl", [records[3], {"prompt": "new", "answer": 1}]),
    )
    assert len(task.train) == 199 and task.overlap == 2
    assert [p.prompt for p in task.heldout] == ["q3", "new"]


def test_columns_may_have_other_names_and_solutions_are_given_back(tmp_path):
    lines = [{"question": f"é{i}", "gold": i, "proof": f"so {i}"} for i in range(50)]
    task = make_task(
        "jsonl",
        path=write(tmp_path / "a.jsonl", lines),
        heldout_fraction=0.5,
        prompt="question",
        answer="gold",
        solution="proof",
    )
    problem = task.train[0]
    number = problem.prompt[1:]
    assert problem.columns == {"answer": int(number), "proof": f"so {number}"}
    assert task.solve(problem) == f"so {number}"
    assert {"é", "s", "o", " ", "0"} <= set(task.symbols)
    scores = Rewarder({"accuracy": task.accuracy})([problem], [[number, "x"]])
    assert scores.parts["accuracy"].tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_fills_prompts_and_leaves_the_split(tmp_path, records, template):
    path = write(tmp_path / "a.jsonl", records)
    plain, task = make_task("jsonl", path=path), make_task("jsonl", path=path, template=template)
    fill = make_template(template).prompt
    for before, after in ((plain.train, task.train), (plain.heldout, task.heldout)):
        assert [fill(p.prompt) for p in before] == [p.prompt for p in after]
    assert (task.symbols is None) == (template in ("chat", "boxed"))


def test_a_template_refuses_chat_messages(tmp_path):
    lines = [{"prompt": [{"role": "user", "content": "hi"}], "answer": 1}]
    with pytest.raises(ValueError, match=r"a\.jsonl:1: .* holds chat messages; valid: text"):
        make_task("jsonl", path=write(tmp_path / "a.jsonl", lines), template="chat")


def test_parquet_gives_the_problems_of_the_same_json_lines(tmp_path):
    chats = [[{"role": "user", "content": f"hi {i}"}] for i in range(40)]
    lines = [{"prompt": c, "answer": str(i), "tests": [i, 2]} for i, c in enumerate(chats)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), tmp_path / "a.parquet")
    expected = make_task("jsonl", path=write(tmp_path / "a.jsonl", lines))
    task = make_task("jsonl", path=str(tmp_path / "a.parquet"))
    assert task.train == expected.train and task.heldout == expected.heldout


def test_a_bad_parquet_record_or_file_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    lines = [{"prompt": "p", "answer": "1"}, {"prompt": None, "answer": "2"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), path)
    with pytest.raises(ValueError, match=r"a\.parquet: record 2: column 'prompt' is null; valid"):
        make_task("jsonl", path=str(path))
    path.write_text('{"prompt": "p", "answer": 1}')
    whole = path.read_bytes()
    for broken in (
        b'{"prompt": "p", "answer": 1}',
        whole[:-60] + b"\xff" * 40 + whole[-20:],
        whole[:4] + bytes(40) + whole[44:],
    ):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"a\.parquet: it cannot be read as parquet: .+\Z"):
            make_task("jsonl", path=str(path))
    late = pyarrow.array([2**62], pyarrow.timestamp("us"))  # no date of Python's
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["p"], "at": late}), path)
    with pytest.raises(ValueError, match=r"a\.parquet: it cannot be read as parquet: "):
        make_task("jsonl", path=str(path))


def test_parquet_without_its_library_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pyarrow":
            raise ModuleNotFoundError("No module named 'pyarrow'")
        return real(name, *args, **kwargs)

    (tmp_path / "a.parquet").touch()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'grpo_jax\[parquet\]' \(No mod"):
        make_task("jsonl", path=str(tmp_path / "a.parquet"))


def test_chat_messages_are_kept(tmp_path):
    chats = [[{"role": "user", "content": f"hi {i}"}] for i in range(40)]
    lines = [{"prompt": chat} for chat in chats]
    task = make_task("jsonl", path=write(tmp_path / "a.jsonl", lines), reward="format")
    assert sorted(json.dumps(p.prompt) for p in [*task.train, *task.heldout]) == sorted(
        map(json.dumps, chats)
    )
    assert task.accuracy is format_tags and task.symbols is None


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"prompt": "q", "answer"', r"not JSON: .* at column \d+"),
        ('["prompt"]', "a list; valid: an object"),
        ('{"promt": "q", "answer": 1}', "unknown column 'prompt'; did you mean 'promt'"),
        ('{"prompt": "q", "anwser": 1}', "unknown column 'answer'; did you mean 'anwser'"),
        ('{"prompt": 3, "answer": 1}', "column 'prompt' is 3; valid: text"),
        ('{"prompt": "", "answer": 1}', "column 'prompt' is \"\"; valid: text"),
        ('{"prompt": [], "answer": 1}', r"column 'prompt' is \[\]; valid: text"),
        ('{"prompt": [{"role": "user"}], "answer": 1}', 'message 1 is {"role": "user"}'),
        (
            '{"prompt": [{"role": "assistant", "content": null}], "answer": 1}',
            "the content of message 1 is null",
        ),
        ('{"prompt": [{"role": "system", "content": "Hi"}], "answer": 1}', "asks nothing; valid: "),
        (
            '{"prompt": [{"role": "user", "content": [{"type": "image"}]}], "answer": 1}',
            "a list of messages .*, not a list of parts: models here read text only",
        ),
        ('{"prompt": "q", "answer": 1, "prefill": 2}', "'prefill' is reserved"),
        ('{"prompt": "q", "answer": 1, "completions": 2}', "'completions' is reserved"),
        (b'{"prompt": "\xff", "answer": 1}', "not UTF-8"),
        (
            r'{"prompt": "a\ud83d!", "answer": 1}',
            r'column "prompt" holds "\\ud83d", half of a character',
        ),
        (r'{"prompt": "q", "answer": 1, "hints": [{"\udc00": 2}]}', r'column "hints" holds'),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, match):
    path = tmp_path / "bad.jsonl"
    bad = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b'{"prompt": "p", "answer": 1}\n\n' + bad + b"\n")
    with pytest.raises(ValueError, match=rf"bad\.jsonl:3: .*{match}"):
        make_task("jsonl", path=str(path))


def test_byte_order_marks_and_whole_characters_as_escapes_are_read(tmp_path):
    path = tmp_path / "windows.jsonl"
    line = rb'{"prompt": "\ud83d\ude42", "answer": 1}'
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\xef\xbb\xbf" + line)  # as two files in one
    task = make_task("jsonl", path=str(path), heldout_fraction=1)
    assert [p.prompt for p in task.heldout] == ["🙂", "🙂"]


@pytest.mark.parametrize("name", ["jsonl", "gsm8k", "math", "svamp", "pairs", "solved", "mixture"])
def test_every_path_of_a_task_may_begin_at_home(tmp_path, monkeypatch, name):
    """Found there: what is at fault is named by its whole path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "good.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    (tmp_path / "bad.jsonl").write_text("broken\n")
    addition = {"name": "addition", "digits": 1, "heldout_size": 8}
    options = {
        "jsonl": {"path": "~/good.jsonl", "answer": "chosen", "heldout_path": "~/bad.jsonl"},
        "pairs": {"path": "~/good.jsonl", "replay": ("~/bad.jsonl",)},
        "solved": {"path": "~/bad.jsonl", "of": addition},
        "svamp": {"path": "~/bad.jsonl"},
        "mixture": {"parts": {"jsonl": {"path": "~/bad.jsonl"}, "addition": {}}},
    }.get(name, {"path": "~/bad.jsonl", "heldout_path": "~/bad.jsonl"})
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}/bad.jsonl.*: not JSON"):
        make_task(name, **options)


@pytest.mark.parametrize(
    ("cases", "match"),
    [
        ("", "unknown column 'cases'"),
        (', "cases": [{"stdout": 5}]', "case 1: stdout=5; valid: text"),
        (', "cases": [{"stdout": "5"}, {"call": "f"}]', "case 2: call='f' without expected; valid"),
    ],
)
def test_cases_of_programs_are_read_with_the_data(tmp_path, cases, match):
    path = tmp_path / "bad.jsonl"
    good = '{"prompt": "p", "cases": null}\n{"prompt": "q", "cases": [{"stdout": "5"}]}'
    path.write_text(f'{good}\n{{"prompt": "r"{cases}}}\n')
    with pytest.raises(ValueError, match=rf"bad\.jsonl:3: .*{match}"):
        make_task("jsonl", path=str(path), reward="code")


@pytest.mark.parametrize("none", [None, [], "", "[]", "[ ]\n", "{}"])
def test_records_without_cases_are_dropped_or_kept(tmp_path, capsys, none):
    cases = [{"stdout": "5"}]
    lines = [{"prompt": "p", "cases": cases}, {"prompt": "q", "cases": none}]
    path = write(tmp_path / "a.jsonl", lines)
    options = {"path": path, "reward": "code", "heldout_fraction": 1}
    assert [p.prompt for p in make_task("jsonl", **options).heldout] == ["p"]
    assert "1 of 2 records" in (warning := capsys.readouterr().err) and "a.jsonl:2: " in warning
    with pytest.raises(ValueError, match=r"a\.jsonl:2: column 'cases' is "):
        make_task("jsonl", **options, unanswered="refuse")
    kept = make_task("jsonl", **options, unanswered="keep").heldout
    assert [p.columns["cases"] for p in kept] == [cases, None] and not capsys.readouterr().err


def test_records_without_an_answer_may_be_kept_for_other_rewards(tmp_path, capsys):
    """The reward abstains from them; an answer that is there is judged as ever."""
    lines = [{"prompt": "p", "answer": "3"}, {"prompt": "q"}]
    lines += [{"prompt": "r", "answer": a} for a in (None, " ", float("nan"))]
    for reward in NEED_ANSWER:
        answer = "A" if reward == "choice" else "3"
        path = write(tmp_path / "a.jsonl", [lines[0] | {"answer": answer}, *lines[1:]])
        options = {"path": path, "reward": reward, "unanswered": "keep", "heldout_fraction": 1}
        task = make_task("jsonl", **options)
        scores = Rewarder({"accuracy": task.accuracy})(task.heldout, [[answer]] * 5)
        assert scores.parts["accuracy"][:, 0].tolist()[0] == 1.0
        assert np.isnan(scores.parts["accuracy"][1:]).all() and not capsys.readouterr().err
    make_task("jsonl", **options | {"path": write(tmp_path / "b.jsonl", lines[1:])})
    misspelt = write(tmp_path / "c.jsonl", [{"prompt": "q", "anwser": 3}])
    with pytest.raises(ValueError, match=r"c\.jsonl:1: .*did you mean 'anwser'"):
        make_task("jsonl", **options | {"path": misspelt})
    with pytest.raises(
        ValueError, match=r"unknown unanswered 'leave'; .*valid: drop, keep, refuse"
    ):
        make_task("jsonl", **options | {"unanswered": "leave"})


def chat(*contents, **marks):
    """Messages of the user and the assistant, alternating; marks are of the last."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return [*messages[:-1], {**messages[-1], **marks}]


BEGUN = [
    {"prompt": chat("2+2?", "<think>\n"), "answer": "4"},
    {"prompt": chat("2+2?", "Let me think step by step."), "answer": "4"},
    {"prompt": chat("2+2?", "<think>2 and 2.</think>\n<answer>"), "answer": "4"},
    {"prompt": chat("2+2?", "Of 14 ways, the first:"), "answer": "4"},
    {"prompt": chat("2+2?", "There are 4 ways:", prefix=True), "answer": "4"},
    {"messages": chat("Who?", "I am", prefix=True), "answer": "Ann"},
    {"prompt": chat("Who?", "I am", "Who?"), "answer": "Ann"},
    {"prompt": chat("2+2?", "4", "3+3?"), "answer": "4"},
]
ANSWERED = [
    {"prompt": chat("2+2?", "The answer is 4."), "answer": 4},
    {"prompt": chat("2+2?", "2 + 2 = 4"), "answer": "4", "solution": "x"},
    {"prompt": chat("2+2?", "Two and two."), "answer": "4", "solution": "Two and two."},
    {"prompt": chat("2+2?", "So \\boxed{4}"), "answer": "four"},
    {"prompt": chat("2+2?", "<think>.</think><answer>5</answer>"), "answer": "4"},
    {"prompt": chat("2+2?", "2 and 2.\n#### 5"), "answer": "4"},
    {"messages": chat("Who?", "I am Ben."), "answer": "Ann"},
]


@pytest.mark.parametrize("record", BEGUN)
def test_a_message_that_the_assistant_has_begun_is_a_prompt(tmp_path, record):
    name = next(iter(record))
    path = write(tmp_path / "a.jsonl", [record])
    task = make_task("jsonl", path=path, prompt=name, heldout_fraction=1.0)
    assert task.heldout[0].prompt == record[name]


@pytest.mark.parametrize("record", ANSWERED)
def test_a_conversation_with_its_answer_is_no_prompt(tmp_path, record):
    name = next(iter(record))
    path = write(tmp_path / "a.jsonl", [BEGUN[0] | {name: chat("?")}, record])
    with pytest.raises(ValueError, match=r"a\.jsonl:2: .* ends in an answer .*\"prefix\": true"):
        make_task("jsonl", path=path, prompt=name)


@pytest.mark.parametrize(
    "without",
    [{"answer": a} for a in (None, " ", float("nan"), [], {}, "\u200b", "\ufeff ")] + [{}],
)
def test_records_without_an_answer_are_dropped(tmp_path, records, capsys, without):
    lines = [*records[:9], *({"prompt": f"none {i}", **without} for i in range(5))]
    path = write(tmp_path / "a.jsonl", lines)
    task = make_task("jsonl", path=path, heldout_fraction=0.5)
    assert len(task.train) + len(task.heldout) == 9
    [warning] = capsys.readouterr().err.splitlines()
    assert "warning: 5 of 14 records" in warning and warning.endswith("; and 2 more")
    assert "a.jsonl:10: " in warning and "a.jsonl:12: " in warning
    with pytest.raises(ValueError, match=r"a\.jsonl:10: .*answer"):
        make_task("jsonl", path=path, unanswered="refuse")
    mine = make_task("jsonl", path=path, reward=exact_answer, heldout_fraction=0.5)
    assert len(mine.train) + len(mine.heldout) == 9 and capsys.readouterr().err  # by function
    with pytest.raises(
        ValueError,
        match=r"no record of 5 has an answer; .*none\.jsonl:1: .*`answer`.*unanswered='keep'",
    ):
        make_task("jsonl", path=write(tmp_path / "none.jsonl", lines[9:]))
    task = make_task("jsonl", path=path, heldout_fraction=0.5, reward="format")  # needs none
    assert len(task.train) + len(task.heldout) == 14 and not capsys.readouterr().err


@pytest.mark.parametrize("answer", [["5"], [None], {"value": 5}, [[1, "a"]], [True]])
def test_an_answer_that_is_compared_in_a_form_nobody_writes_is_refused(tmp_path, answer):
    lines = [{"prompt": "q", "answer": "5"}, {"prompt": "r", "answer": [1, 2.5]}]
    path = write(tmp_path / "a.jsonl", lines)
    make_task("jsonl", path=path, heldout_fraction=1)
    path = write(tmp_path / "a.jsonl", [*lines, {"prompt": "s", "answer": answer}])
    with pytest.raises(ValueError, match=r"a\.jsonl:3: column 'answer' is .*; valid: text, or num"):
        make_task("jsonl", path=path, unanswered="keep")


@pytest.mark.parametrize("side", ["path", "heldout_path"])
@pytest.mark.parametrize(
    "content, match", [("\n", r": it holds no records"), ("[" * 9999, r":1: nested too deeply")]
)
def test_a_file_without_records_or_without_end_is_named(tmp_path, records, side, content, match):
    files = {"path": write(tmp_path / "a.jsonl", records)} | {side: str(tmp_path / "b.jsonl")}
    (tmp_path / "b.jsonl").write_text(content)
    with pytest.raises(ValueError, match=rf"b\.jsonl{match}; valid: "):
        make_task("jsonl", **files)


@pytest.mark.parametrize("reward", ["last_number", "numeric_answer", "choice"])
def test_answers_that_the_reward_cannot_judge_by_are_counted_and_the_first_is_named(
    tmp_path, reward
):
    """Of every task that reads files, before anything is sampled."""
    what = "is not a choice" if reward == "choice" else "is not a number"
    answers = ["B" if reward == "choice" else "3", "3 apples", "x+1"]
    of = {
        "jsonl": [{"prompt": f"q{a}", "answer": a} for a in answers],
        "math": [{"problem": f"q{a}", "solution": f"\\boxed{{{a}}}"} for a in answers],
    }
    for name, records in of.items():
        path = write(tmp_path / f"{name}.jsonl", records)
        heldout = write(tmp_path / "heldout.jsonl", [records[0] | {next(iter(records[0])): "new"}])
        with pytest.raises(
            ValueError, match=rf"{name}\.jsonl:2: column answer: '3 apples' {what}"
        ) as e:
            make_task(name, path=path, heldout_path=heldout, reward=reward)
        assert "first of 2 among 4 problems" in str(e.value)


def test_a_column_that_a_reward_needs_and_no_record_has_is_named(tmp_path):
    def mine(prompts, completions, tests):
        return [0.0] * len(completions)

    path = write(tmp_path / "a.jsonl", [{"prompt": "q", "answer": "1"}])
    with pytest.raises(ValueError, match=r"a\.jsonl:1: the reward needs the column 'tests'"):
        make_task("jsonl", path=path, reward=mine, heldout_fraction=1)


def test_a_benchmark_is_all_held_out(tmp_path, records):
    path = write(tmp_path / "a.jsonl", records)
    task = make_task("jsonl", path=path, heldout_fraction=1.0)
    assert len(task.train) == 0 and task.overlap == 0
    assert [p.prompt for p in task.heldout] == [record["prompt"] for record in records]
    with pytest.raises(ValueError, match="no problems to train on"):
        batches(task.train, 1, seed=0)


def test_bad_options_are_named(tmp_path, records):
    path = write(tmp_path / "a.jsonl", records)
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl: no such file"):
        make_task("jsonl", path=str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match=r"heldout_fraction=1\.1: valid"):
        make_task("jsonl", path=path, heldout_fraction=1.1)
    with pytest.raises(ValueError, match="no train problems of 200 records"):
        make_task("jsonl", path=path, heldout_path=path)
    with pytest.raises(ValueError, match="unknown reward 'exact'"):
        make_task("jsonl", path=path, reward="exact")
