"""Data are checked before the first step: what is named, counted, and said to help."""

import dataclasses
import json

import pytest
from chat_tokenizer import save

from grpo_jax.config import defaults, resolve
from grpo_jax.errors import UsageError
from grpo_jax.files import fingerprint
from grpo_jax.tasks import Problem, make_task
from grpo_jax.tasks.problem import listed
from grpo_jax.tokenizers import char_tokenizer, keep_tokenizer
from grpo_jax.training import data_check
from grpo_jax.training.data_check import check_data
from grpo_jax.training.experiment import build
from grpo_jax.training.sft import fits_solved

GOOD = [
    {"prompt": f"{i}+{i}=", "answer": f"{2 * i}", "solution": f"{2 * i}"} for i in range(10, 50)
]
LONG = {"prompt": "123456789+1=", "answer": "123456790", "solution": "1234"}


@pytest.fixture
def experiment(tmp_path):
    def make(records, heldout=GOOD[:4], task=None, **changes):
        for name, lines in (("train", records), ("test", heldout)):
            text = "".join(f"{json.dumps(record)}\n" for record in lines)
            (tmp_path / f"{name}.jsonl").write_text(text)
        config = defaults()
        config.compilation_cache, config.prompt_length, config.rollout.max_tokens = "", 8, 4
        paths = {"path": f"{tmp_path}/train.jsonl", "heldout_path": f"{tmp_path}/test.jsonl"}
        config.task = task or {"name": "jsonl", **paths}
        config.update_from_flattened_dict(changes)
        return build(resolve(config))

    return make


def refused(ex, *parts):
    with pytest.raises(UsageError) as error:
        check_data(ex)
    shown = str(error.value)
    assert [part for part in parts if part not in shown] == [], shown
    assert "\n" not in shown
    return shown


def test_the_first_over_long_prompt_is_named_and_all_are_counted(experiment):
    check_data(experiment(GOOD[4:]))
    longest = LONG | {"prompt": "1234567890+1="}
    shown = refused(
        experiment([*GOOD[4:20], LONG, *GOOD[20:], longest]),
        "train.jsonl:17: the prompt '123456789+1=' has 12 tokens; valid: 1 to 8, ",
        "--config.prompt_length=13, or --config.overlong_prompts=drop",
        "(the first of 2 among 38 training problems)",
    )
    assert shown.count("train.jsonl") == 1


def test_held_out_prompts_and_worked_solutions_are_checked(experiment):
    ex = experiment(GOOD[4:], heldout=[*GOOD[:4], LONG])
    refused(ex, "test.jsonl:5: the prompt", "among 5 held-out problems")
    ex = experiment([*GOOD[4:], LONG | {"prompt": "1+1="}], **{"sft.steps": 1})
    parts = ("train.jsonl:37: the worked solution of '1+1=' has 5 tokens; valid: 1 to 4",)
    shown = refused(ex, *parts, "--config.rollout.max_tokens=5, or")
    with pytest.raises(UsageError) as drawn:
        fits_solved(ex, ex.task.train[36])
    assert str(drawn.value) == shown.rsplit(" (", 1)[0]
    nothing = experiment([{"prompt": "1+1=", "answer": "2"}, *GOOD[4:]], **{"sft.steps": 1})
    refused(nothing, "config.sft.steps=1: task 'jsonl' has no solutions")


def test_what_is_dropped_is_said_beforehand(experiment, capsys):
    drop = {"overlong_prompts": "drop", "sft.steps": 1}
    records = [LONG, LONG | {"prompt": "1+1="}, *GOOD[4:]]
    ex = experiment(records, heldout=[*GOOD[:4], LONG | {"prompt": "987654321+1="}], **drop)
    check_data(ex)
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("/")[0] for line in shown] == [
        "overlong_prompts=drop leaves out 1 of 38 training problems, the first ",
        "overlong_prompts=drop leaves out 2 of 38 worked solutions, the first ",
        "overlong_prompts=drop leaves out 1 of 5 held-out problems, the first ",
    ]
    assert [line.rpartition("/")[2] for line in shown] == ["train.jsonl:1"] * 2 + ["test.jsonl:5"]
    assert [fits_solved(ex, p) for p in listed(ex.task.train)] == [False] * 2 + [True] * 36


def test_what_the_run_never_reads_is_not_judged(experiment):
    """Solutions behind sft.examples; held-out problems behind eval.problems, or without eval."""
    last = [*GOOD[4:], LONG | {"prompt": "1+1="}]
    check_data(experiment(last, **{"sft.steps": 1, "sft.examples": 36}))
    ex = experiment(last, **{"sft.steps": 1, "sft.examples": 37})
    refused(ex, "train.jsonl:37: the worked solution", "first of 1 among 37 worked solutions")
    check_data(ex, sampled=False)  # a reward model has no cold start
    ex = experiment([*GOOD[4:], LONG], **{"sft.steps": 1, "sft.examples": 36, "steps": 0})
    check_data(ex)
    heldout = [*GOOD[:4], LONG]
    check_data(experiment(GOOD[4:], heldout, **{"eval.problems": 4}))
    check_data(experiment(GOOD[4:], heldout, **{"eval.every": 0}))
    refused(experiment(GOOD[4:], heldout, **{"eval.problems": 5}), "test.jsonl:5: the prompt")
    nothing = experiment([{"prompt": "1+1=", "answer": "2"}, *GOOD[4:]], **{"sft.steps": 1})
    check_data(nothing, sampled=False)


def test_of_a_mixture_the_first_examples_are_those_that_are_drawn_first(experiment, tmp_path):
    experiment([*GOOD[4:], LONG | {"prompt": "1+1="}])
    file = {"path": f"{tmp_path}/train.jsonl", "heldout_path": f"{tmp_path}/test.jsonl"}
    task = {
        "name": "mixture",
        "parts": {"jsonl": file, "addition": {"digits": 1, "heldout_size": 8}},
    }
    sft = {"task": task, "sft.steps": 1, "rollout.max_tokens": 4}
    records = [*GOOD[4:], LONG | {"prompt": "1+1="}]
    check_data(experiment(records, **sft, **{"sft.examples": 73}))  # 37 of them drawn
    ex = experiment(records, **sft, **{"sft.examples": 74})
    refused(ex, "train.jsonl:37: the worked", "first of 1 among 37 worked solutions")


@pytest.mark.parametrize(
    ("reward", "columns", "message"),
    [
        ("last_number", {"answer": "x+1"}, "column answer: 'x+1' is not a number"),
        ("numeric_answer", {"answer": "x+1"}, "column answer: 'x+1' is not a number"),
        ("choice", {"answer": "AB"}, "column answer: 'AB' is not a choice"),
        ("code", {"cases": [{"stdout": 5}]}, "column cases: case 1: stdout=5; valid: text"),
        ("code", {}, "the reward needs the column 'cases'"),
        ("language", {"language": "english"}, "column language: 'english' is not an ISO 639-1"),
        ("format", {"rewards": "accuracy"}, "column 'rewards' of the prompt '1+1=' is 'accuracy'"),
    ],
)
def test_what_a_reward_cannot_read_is_counted_and_named(experiment, reward, columns, message):
    pytest.importorskip("lingua", reason="the extra grpo_jax[language] is not installed")
    right = {"choice": {"answer": "A"}, "code": {"cases": [{"stdout": "5"}]}}.get(reward, {})
    good = [record | right for record in GOOD[4:]]
    bad = {"prompt": "1+1=", "answer": "A", "solution": "2", **columns}
    records, weights = [*good, bad, bad | {"prompt": "2+2="}], {"rewards": {reward: 1.0}}
    ex = experiment(records, **weights)
    more = f": {message}", "(the first of 2 among 38 training problems)"
    refused(ex, "train.jsonl:37: prompt '1+1=': ", *more)
    check_data(ex, sampled=False)  # nothing asks the reward
    others = [record | {"rewards": ["accuracy"]} for record in records[36:]]
    if reward != "format":
        check_data(experiment([*good, *others], **weights))


def test_answers_that_a_reward_reads_as_nothing_are_named(experiment, tmp_path, capsys):
    pytest.importorskip("math_verify", reason="the extra grpo_jax[math] is not installed")
    records = [*GOOD[4:], {"prompt": "1+1=", "answer": "\\begin{array}{c}\\end{array}"}]
    check_data(experiment(records, rewards={"math_verify": 1.0}))
    (warning,) = capsys.readouterr().err.splitlines()
    assert "math_verify reads 1 of 37 answers as nothing" in warning
    assert warning.endswith("'\\\\begin{array}{c}\\\\end{array}' (" + f"{tmp_path}/train.jsonl:37)")
    check_data(experiment(records, rewards={"accuracy": 1.0}))
    assert not capsys.readouterr().err


def test_a_part_of_a_mixture_names_once_the_answers_that_are_nothing(experiment, tmp_path, capsys):
    pytest.importorskip("math_verify", reason="the extra grpo_jax[math] is not installed")
    records = [*GOOD[4:], *({"prompt": f"{i}+1=", "answer": "?"} for i in range(10, 17))]
    file = {"name": "jsonl", "path": str(tmp_path / "train.jsonl"), "reward": "math_verify"}
    mixed = {"name": "mixture", "parts": {"file": file, "addition": {}}}
    check_data(experiment(records, task=mixed, rewards={"accuracy": 1.0, "math_verify": 1.0}))
    (warning,) = capsys.readouterr().err.splitlines()
    assert "reads 7 of 43 answers" in warning
    assert warning.endswith(f": '?' ({tmp_path}/train.jsonl:37)")


def test_all_prompts_that_the_template_refuses_are_counted(experiment, tmp_path):
    save(tmp_path)
    user, system = ({"role": role, "content": "1"} for role in ("user", "system"))
    records = [{"prompt": [user], "answer": "2"}] * 3
    late = {"prompt": [user, system], "answer": "2"}
    task = {"tokenizer": str(tmp_path), "prompt_length": 60}
    template = "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no!') }}"
    template += "{% endif %}{{ m.content }}{% endfor %}"
    ex = experiment([*records, late, *records, late], **task)
    tokenizer = dataclasses.replace(ex.tokenizer, chat_template=template)
    ex = dataclasses.replace(ex, tokenizer=tokenizer)
    refused(ex, "train.jsonl:4: prompt ", "no!", "(the first of 2 among 8 training problems)")


def test_a_drawn_prompt_is_refused_in_the_same_words(experiment):
    ex = experiment([*GOOD[4:], LONG])
    shown = refused(ex).rsplit(" (", 1)[0]
    with pytest.raises(UsageError) as drawn:
        ex.fits(ex.task.train[36])
    assert str(drawn.value) == shown
    with pytest.raises(UsageError, match="a problem of the task: the prompt '1234567=' has 8"):
        experiment(GOOD[4:], prompt_length=7).fits(Problem("1234567="))


def test_characters_outside_the_vocabulary_are_named(experiment, tmp_path):
    keep_tokenizer(char_tokenizer("0123456789+="), tmp_path / "mine")
    mine = {"tokenizer": str(tmp_path / "mine")}
    bad = {"prompt": "1x1=", "answer": "2", "solution": "2"}
    ex = experiment([*GOOD[4:], bad, bad | {"prompt": "xx="}], **mine)
    parts = ("train.jsonl:37: prompt '1x1=': character 'x' at position 1", "first of 2 among 38")
    refused(ex, *parts, "vocabulary")
    ex = experiment([*GOOD[4:], bad | {"prompt": "1+1=", "solution": "y"}], **mine)
    check_data(ex)  # nothing reads its solution
    ex = experiment(
        [*GOOD[4:], bad | {"prompt": "1+1=", "solution": "y"}], **mine, **{"sft.steps": 1}
    )
    refused(ex, "train.jsonl:37: worked solution of prompt '1+1=': character 'y'")
    pairs = {"name": "pairs", "path": str(tmp_path / "train.jsonl")}
    ex = experiment(
        [{"prompt": f"{i}=", "chosen": "1", "rejected": "2z"} for i in range(60)],
        task=pairs,
        **mine,
    )
    refused(ex, "column 'rejected' of prompt", "character 'z'")


def test_problems_of_other_tasks_keep_their_place(experiment, tmp_path):
    save(tmp_path)
    keep = {"tokenizer": str(tmp_path), "prompt_length": 60}
    experiment([*GOOD[4:], LONG])
    path = str(tmp_path / "train.jsonl")
    file = {"name": "jsonl", "path": path, "heldout_fraction": 0.2}
    mixed = {"name": "mixture", "parts": {"file": {**file, "share": 2}, "addition": {}}}
    for task in (file, {"name": "framed", "of": file}, mixed):
        ex = experiment([*GOOD[4:], LONG | {"prompt": "9" * 70}], task=task, **keep)
        assert ex.task.files == (tmp_path / "train.jsonl",)
        refused(ex, "train.jsonl:37: the prompt", "tokens; valid: 1 to 60")
    assert not list(listed(make_task("addition").train))


def test_a_long_check_says_how_far_it_is(experiment, monkeypatch, capsys):
    monkeypatch.setattr(data_check, "PATIENCE_S", -1.0)
    monkeypatch.setattr(data_check, "CHUNK", 20)
    check_data(experiment(GOOD[4:]))
    shown = [f"checked {n} of 40 problems" for n in (20, 36, 40)]
    assert capsys.readouterr().out.splitlines() == shown


def test_a_fingerprint_is_of_the_content(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.json").write_text("{}")
    seen = {fingerprint(tmp_path / "a")}
    assert fingerprint(tmp_path / "a/1.json") == (
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # sha256sum
    )
    (tmp_path / "a/1.json").rename(tmp_path / "a/2.json")
    seen.add(fingerprint(tmp_path / "a"))
    (tmp_path / "a/2.json").write_text("[]")
    seen.add(fingerprint(tmp_path / "a"))
    assert len(seen) == 3
