"""Rejection sampling: what is kept, what drops the rest, and going on where it was cut off."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from tiny import compile_fast, tiny_config  # noqa: F401

from grpo_jax.config.fields import FrozenFields
from grpo_jax.errors import UsageError
from grpo_jax.models.decoder import Decoder
from grpo_jax.sharding import unbox, using
from grpo_jax.tasks import make_task
from grpo_jax.tokenizers import encode, load_tokenizer
from grpo_jax.training import rejection
from grpo_jax.training.experiment import build
from grpo_jax.training.rejection import Rule, reject, verdicts

RULE = Rule(problems=10, samples=4, keep=2, temperature=1.0)
FILES = ("rule.json", "samples.jsonl", "kept.jsonl", "dropped.jsonl", "pairs.jsonl")


def test_each_sample_is_kept_or_has_the_filter_that_dropped_it():
    texts = ["a", "b", "b", "a", "c", "d", "e"]
    right = [True, False, True, True, True, True, True]
    finished = [True, True, True, True, False, True, True]
    expected = ["kept", "wrong", "kept", "repeated", "cut", "surplus", "surplus"]
    assert verdicts(RULE, texts, right, finished) == expected
    one = verdicts(RULE._replace(keep=1), texts, right, finished)
    assert one == ["kept", "wrong", "surplus", "repeated", "cut", "surplus", "surplus"]


def test_where_nothing_is_right_the_best_liked_is_kept():
    def judge(problems, completions):
        return np.array([[len(text) for text in group] for group in completions], np.float32)

    def other(problems, completions):
        return -3 * np.array([[text.count("x") for text in group] for group in completions])

    texts = [["a", "abc", "xabcd"], ["xx", "b", "ab"]]
    liked = rejection.best_liked([judge, other], ["p", "q"], texts)
    assert liked.tolist() == [[False, True, False], [False, False, True]]
    assert not rejection.best_liked([], ["p", "q"], texts).any()


def test_thoughts_in_another_language_are_dropped():
    pytest.importorskip("lingua", reason="the extra grpo_jax[language] is not installed")
    texts = [
        "<think>We add both numbers.</think>7",
        "<think>We add 两个数相加.</think>7",
        "3 + 4 = 7",
    ]
    rule = RULE._replace(language="en", keep=9)
    assert verdicts(rule, texts, [True] * 3, [True] * 3) == ["kept", "language", "kept"]


@pytest.fixture(scope="module")
def policy():
    ex = build(tiny_config(**{"rollout.max_tokens": 40}))
    ex = dataclasses.replace(ex, task=dataclasses.replace(ex.task, accuracy=tiny.even))
    tokens = jax.numpy.zeros((1, 1, 2), jax.numpy.int32)
    params = ex.model.init(jax.random.key(3), tokens, method=Decoder.initialise)["params"]
    return ex, unbox(params)


def run(policy, out, rule=RULE):
    ex, params = policy
    with ex.rewarder(("accuracy",)) as rewarder, using(ex.mesh):
        return reject(ex, params, rewarder, rule, out, "run, step 3")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(rejection, "ROWS", 12)  # three problems


@pytest.fixture(scope="module")
def whole(policy, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rejection, "ROWS", 12)
        return out, run(policy, out)


def test_every_sample_is_in_one_of_two_files(whole):
    out, counts = whole
    kept, dropped = (
        [json.loads(x) for x in (out / f"{n}.jsonl").open()] for n in ("kept", "dropped")
    )
    assert counts["kept"] == len(kept) > 0 and sum(counts.values()) == 40
    assert all(len(record["solution"]) % 2 == 0 for record in kept)
    assert {r["filter"] for r in dropped} == counts.keys() - {"kept"} >= {"wrong"}
    assert all(len(r["completion"]) % 2 for r in dropped if r["filter"] == "wrong")
    assert max([r["problem"] for r in kept].count(i) for i in range(10)) <= 2


def test_what_is_kept_is_a_task_with_solutions(whole):
    out, _ = whole
    task = make_task("jsonl", path=str(out / "kept.jsonl"), heldout_fraction=0.3)
    records = [json.loads(line) for line in (out / "kept.jsonl").open()]
    solved = {(p.prompt, task.solve(p)) for p in (*task.train, *task.heldout)}
    assert solved == {(r["prompt"], r["solution"]) for r in records}


def test_pairs_are_a_right_and_a_wrong_completion_of_a_problem(policy, whole):
    out, _ = whole
    expected = {
        record["problem"]: set(zip(record["completions"], record["verdicts"], strict=True))
        for record in map(json.loads, (out / "samples.jsonl").open())
    }
    found = [json.loads(line) for line in (out / "pairs.jsonl").open()]
    two = [(r["problem"], r["chosen"], r["rejected"]) for r in found]
    assert len(set(two)) == len(two) > 0
    for place, chosen, rejected in two:
        assert {(chosen, "kept"), (rejected, "wrong")} <= expected[place]
        assert len(chosen) % 2 == 0 and len(rejected) % 2 == 1
    for place, all_of_it in expected.items():
        texts = [{text for text, its in all_of_it if text and its == v} for v in ("kept", "wrong")]
        mine = [pair for pair in two if pair[0] == place]
        assert len(mine) == (max(map(len, texts)) if all(texts) else 0)
        if mine:  # none is left over
            assert [{p[1] for p in mine}, {p[2] for p in mine}] == texts
    task = make_task("pairs", path=str(out / "pairs.jsonl"), heldout_fraction=0.3)
    assert len(task.train) + len(task.heldout) == len(two)
    saved, own = load_tokenizer(out / "tokenizer"), policy[0].tokenizer
    assert (saved.stop, saved.pad) == (own.stop, own.pad)
    assert encode(saved, found[0]["chosen"]) == encode(own, found[0]["chosen"])


def test_a_prompt_too_long_for_the_run_meets_advice_that_can_be_followed(policy, tmp_path):
    """No program that takes a run's config as it is has a flag --config for another."""
    ex, params = policy
    short = FrozenFields(ex.config.to_dict() | {"prompt_length": 1})
    with pytest.raises(UsageError, match=r"valid: 1 to 1, or config\.overlong_prompts='drop'") as e:
        run((dataclasses.replace(ex, config=short), params), tmp_path / "out")
    assert "prompt_length" not in str(e.value) and "experiments.train" in str(e.value)


def test_other_problems_come_after_the_last_from_the_first_on(policy, tmp_path):
    ex, params = policy
    source = [ex.task.train[i] for i in range(5)]
    few = dataclasses.replace(ex, task=dataclasses.replace(ex.task, train=source))
    run((few, params), tmp_path, RULE._replace(problems=3, first=3))
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").open()]
    assert [r["prompt"] for r in records] == [source[i].prompt for i in (3, 4, 0)]


@pytest.mark.parametrize("lines", [0, 2, 5, 9, 10])
def test_a_cut_off_run_ends_as_a_whole_one(policy, whole, tmp_path, lines):
    out = tmp_path / "set"
    out.mkdir()
    (out / "rule.json").write_bytes((whole[0] / "rule.json").read_bytes())
    done = (whole[0] / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (out / "samples.jsonl").write_bytes(b"".join(done[:lines]) + b'{"torn": ')
    assert run(policy, out) == whole[1]
    for name in FILES:
        assert (out / name).read_bytes() == (whole[0] / name).read_bytes(), name


def test_another_rule_is_refused(policy, whole):
    with pytest.raises(UsageError, match="begun with another rule: keep: 2 -> 3"):
        run(policy, whole[0], RULE._replace(keep=3))


def test_a_beginning_that_fails_leaves_no_other_rule(policy, whole, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ValueError("broken")

    monkeypatch.setattr(rejection, "attempts", broken)
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        with pytest.raises(ValueError, match="broken"):
            run(policy, tmp_path / name)
    assert [p.name for p in tmp_path.rglob("*")] == ["there"]
    out = shutil.copytree(whole[0], tmp_path / "cut")
    lines = (out / "samples.jsonl").read_bytes().splitlines(keepends=True)[:3]
    (out / "samples.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match="broken"):
        run(policy, out)
    assert (out / "samples.jsonl").read_bytes() == b"".join(lines) and (out / "rule.json").exists()


def test_a_folder_of_a_rule_without_the_later_fields_is_gone_on_with(policy, whole):
    path = whole[0] / "rule.json"
    old = json.loads(path.read_bytes())
    path.write_text(json.dumps({k: v for k, v in old.items() if k not in ("first", "sources")}))
    assert run(policy, whole[0]) == whole[1]
    path.write_text(json.dumps(old))
