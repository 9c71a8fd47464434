"""Evaluation: estimates against counting every subset, and answers from a stub that knows them."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats
from tiny import compile_fast, tiny_config  # noqa: F401

from grpo_jax.rewards import Rewarder
from grpo_jax.rollout import play
from grpo_jax.tasks import Problem
from grpo_jax.tokenizers import encode
from grpo_jax.training import evaluation
from grpo_jax.training.experiment import build
from grpo_jax.types import Rollouts


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    right = np.random.default_rng(0).random((5, 6)) < 0.3
    result = evaluation.sampled_metrics([[""] * 6] * 5, right)
    assert set(result) == {
        f"{name}{end}"
        for name in ("pass@1", "pass@2", "pass@4", "maj@4")
        for end in ("", "/low", "/high")
    }
    for k in (1, 2, 4):
        shares = [
            np.mean([row[list(chosen)].any() for chosen in itertools.combinations(range(6), k)])
            for row in right
        ]
        assert result[f"pass@{k}"] == pytest.approx(np.mean(shares))
        half = stats.t.ppf(0.975, 4) * np.std(shares, ddof=1) / 5**0.5
        assert result[f"pass@{k}/low"] == pytest.approx(max(np.mean(shares) - half, 0))
        assert result[f"pass@{k}/high"] == pytest.approx(min(np.mean(shares) + half, 1))


def test_maj_at_k_is_the_vote_of_each_block():
    answers = [list("aaabbbac"), list("ababcccc")]
    right = np.array([[x == "a" for x in row] for row in answers])
    result = evaluation.sampled_metrics(answers, right)
    # Block by block: right, wrong; a tie of a right and a wrong one, wrong.
    assert result["maj@4"] == pytest.approx(np.mean([(1 + 0) / 2, (0.5 + 0) / 2]))
    assert result["maj@8"] == pytest.approx(np.mean([1, 0]))


def test_an_answer_marked_both_ways_is_two_answers():
    """A reward may judge more than the answer, such as the format around it."""
    result = evaluation.sampled_metrics([["a"] * 4], np.array([[True, True, True, False]]))
    assert result["maj@4"] == 1.0


@pytest.fixture(scope="module")
def ex():
    return build(tiny_config(**{"eval.samples": 4, "overlong_prompts": "drop"}))


class Stub:
    """A sampler whose completions of problem i are right where knows(i, g), and 9999 elsewhere."""

    def __init__(self, ex, knows):
        self.ex, self.knows, self.seen, self.calls = ex, knows, 0, []
        self.answers = {p.prompt: p.columns["answer"] for p in ex.task.heldout}

    def __call__(self, player, params, prompts, keys, sampling):
        group = keys.shape[1]
        self.calls.append((len(prompts.tokens), group, sampling.temperature))
        tokens, mask = np.zeros((2, len(prompts.tokens), group, sampling.max_tokens), int)
        for p, row in enumerate(prompts.tokens):
            text = self.ex.tokenizer.backend.decode([int(i) for i in row])
            for g in range(group):
                number = self.answers[text] if self.knows(text, g) else "9999"
                ids = encode(self.ex.tokenizer, f"<answer>{number}</answer>")
                tokens[p, g, : len(ids)], mask[p, g, : len(ids)] = ids, 1
        zeros = np.zeros(mask.shape)
        finished = np.ones(mask.shape[:2], bool)
        return Rollouts(
            prompts=prompts,
            tokens=tokens,
            mask=mask.astype(bool),
            logp=zeros,
            entropy=zeros,
            finished=finished,
        )


def test_every_held_out_problem_counts_once(ex, monkeypatch):
    prompts = [p.prompt for p in ex.task.heldout]
    assert len(prompts) == 8
    stub = Stub(ex, lambda text, g: prompts.index(text) % 4 != 0 and g < 2)
    monkeypatch.setattr(play, "generate", stub)
    monkeypatch.setattr(evaluation, "ROWS", 12)  # batches of 3: the last has one too many
    with ex.rewarder(("accuracy",)) as rewarder:
        result = evaluation.evaluate_policy(ex, None, rewarder, problems=7, samples=4).metrics
        all_of_them = evaluation.evaluate_policy(ex, None, rewarder, problems=100).metrics
    assert (result["n"], all_of_them["n"]) == (7, 8)
    assert result["accuracy"] == pytest.approx(5 / 7) and all_of_them["accuracy"] == 6 / 8
    assert result["accuracy/low"] < 5 / 7 < result["accuracy/high"]
    assert result["pass@1"] == pytest.approx(5 / 7 * 2 / 4)
    assert result["pass@2"] == pytest.approx(5 / 7 * 5 / 6)
    assert result["maj@4"] == pytest.approx(5 / 7 * 1 / 2)  # two right against two wrong
    assert result["completions/finished"] == 1
    assert stub.calls[0] == (7, 1, 0.0) and stub.calls[1:4] == [(3, 4, 1.0)] * 3
    assert "pass@1" not in all_of_them


def test_fewer_problems_than_are_asked_for_are_said_once(ex, capsys):
    evaluation._warn_of_fewer.cache_clear()
    for kind, source in (("held-out", ex.task.heldout), ("training", ex.task.heldout[:3])):
        for n in (len(source), len(source) + 1, len(source) + 1):
            chosen = evaluation.first_problems(source, range(len(source)), n, ex.fits, kind)
            assert len(chosen) == len(source)
        message = capsys.readouterr().err
        assert message.startswith(f"warning: {n} {kind} problems are asked for")
        assert f"only {len(source)} are there" in message and message.count("\n") == 1


def test_problems_on_which_accuracy_abstains_do_not_count(ex, monkeypatch):
    answers = [None if i % 4 == 0 else p.columns["answer"] for i, p in enumerate(ex.task.heldout)]
    heldout = [
        dataclasses.replace(p, columns={"answer": a, "kind": "open" if a is None else "sums"})
        for p, a in zip(ex.task.heldout, answers, strict=True)
    ]
    first = heldout[1].prompt
    monkeypatch.setattr(play, "generate", Stub(ex, lambda text, g: text == first))

    def evaluated(problems):
        some = dataclasses.replace(ex, task=dataclasses.replace(ex.task, heldout=problems))
        with some.rewarder(("accuracy",)) as rewarder:
            return evaluation.evaluate_policy(some, None, rewarder, 99, 2)

    result, singly = evaluated(heldout)
    assert (result["n"], result["accuracy"], result["sums/accuracy"]) == (6, 1 / 6, 1 / 6)
    assert "open/accuracy" not in result
    np.testing.assert_array_equal(singly["accuracy"], [True, *[False] * 5])
    np.testing.assert_array_equal(singly["pass@1"], [1, *[0] * 5])
    assert result["pass@2"] == pytest.approx(1 / 6)
    result, singly = evaluated(heldout[:1])
    assert result["n"] == 0 and np.isnan(result["accuracy"]) and singly["accuracy"].shape == (0,)


def test_prompts_that_are_dropped_in_training_are_not_evaluated(ex, monkeypatch):
    long = Problem("1" * 9 + "=", {"answer": "1"})
    heldout = [long, *ex.task.heldout]
    longer = dataclasses.replace(ex, task=dataclasses.replace(ex.task, heldout=heldout))
    monkeypatch.setattr(play, "generate", Stub(ex, lambda text, g: True))
    with ex.rewarder(("accuracy",)) as rewarder:
        result = evaluation.evaluate_policy(longer, None, rewarder, problems=4).metrics
        assert (result["n"], result["accuracy"]) == (4, 1.0)
        none = dataclasses.replace(longer, task=dataclasses.replace(ex.task, heldout=[long]))
        with pytest.raises(ValueError, match="prompt_length drops every problem of 1"):
            evaluation.evaluate_policy(none, None, rewarder, problems=4)


def test_every_problem_is_asked_about_its_accuracy_and_nothing_else(ex, monkeypatch):
    def accuracy(prompts, completions, **columns):
        return [1.0] * len(completions)

    def never(prompts, completions, **columns):
        raise ValueError("asked")

    heldout = [
        dataclasses.replace(problem, columns={**problem.columns, **more})
        for problem, more in zip(
            ex.task.heldout[:3], [{}, {"rewards": ["never"]}, {"rewards": ()}], strict=True
        )
    ]
    some = dataclasses.replace(ex, task=dataclasses.replace(ex.task, heldout=heldout))
    monkeypatch.setattr(play, "generate", Stub(ex, lambda text, g: True))
    rewarder = Rewarder({"accuracy": accuracy, "never": never})
    result = evaluation.evaluate_policy(some, None, rewarder, problems=3, samples=2).metrics
    assert (result["n"], result["accuracy"], result["pass@2"]) == (3, 1.0, 1.0)
