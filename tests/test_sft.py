"""The cold start: its loss is the likelihood of the solutions, and it learns them."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny import compile_fast, reference, tiny_config  # noqa: F401

from grpo_jax.learning.optimizer import make_optimizer
from grpo_jax.learning.state import init_state
from grpo_jax.learning.update import update
from grpo_jax.sharding import using
from grpo_jax.tokenizers import encode
from grpo_jax.training.experiment import build
from grpo_jax.training.sft import LIKELIHOOD, Solved, cold_start, optimizer_config, supervised_batch

STEPS = 30
CONFIG = tiny_config(
    **{"sft.steps": STEPS, "sft.batch": 4, "sft.examples": 4, "sft.learning_rate": 2e-2}
)


@pytest.fixture(scope="module")
def ex():
    return build(CONFIG)


def numpy_nll(ex, params, problems):
    """The mean, over all tokens of all solutions, of -log p, row by row in float64."""
    nll = []
    for problem in problems:
        prompt = encode(ex.tokenizer, problem.prompt)
        own = [*encode(ex.tokenizer, ex.task.solve(problem)), ex.tokenizer.stop[0]]
        logits = reference.row_logits(params, ex.model.config, np.array(prompt + own))
        logp, _ = reference.stats(logits[len(prompt) - 1 : -1], np.array(own))
        nll.extend(-logp)
    return np.mean(nll)


def test_the_loss_is_the_likelihood_in_float64(ex):
    optimizer = make_optimizer(optimizer_config(CONFIG), STEPS)
    state = init_state(ex.model, optimizer, jax.random.key(0), ex.mesh, reference=False)
    problems = [ex.task.train[i] for i in range(4)]
    batch = supervised_batch(ex, problems)
    assert batch.tokens.shape == (4, 1, 18)
    expected = numpy_nll(ex, jax.device_get(state.policy.trained), problems)
    options = {"model": ex.model, "optimizer": optimizer, "mesh": ex.mesh}
    state, metrics = update(state, batch, algorithm=LIKELIHOOD, **options)
    assert float(metrics["loss"]) == pytest.approx(expected, abs=1e-5)
    assert expected > 2
    assert float(metrics["learning_rate"]) == pytest.approx(2e-2)


def test_a_cold_start_learns_its_examples_and_is_done_once(ex, tmp_path, capsys):
    with using(ex.mesh):
        params = jax.device_get(cold_start(ex, None, tmp_path))
        records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
        assert [r["step"] for r in records] == list(range(1, STEPS + 1))
        assert records[-1]["loss"] < 0.5 * records[0]["loss"]
        after = numpy_nll(ex, params, [ex.task.train[i] for i in range(4)])
        assert after == pytest.approx(records[-1]["loss"], rel=0.2)
        capsys.readouterr()
        again = jax.device_get(cold_start(ex, None, tmp_path))
    assert "step" not in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_micro_batches_do_not_change_a_cold_start(tmp_path):
    measured = []
    for number in (1, 4):  # of 4, the 2 that divide the batch of 6
        changes = {"sft.steps": 1, "sft.batch": 6, "optimizer.accumulation": number}
        ex = build(tiny_config(**changes))
        with using(ex.mesh):
            cold_start(ex, None, tmp_path / str(number))
        record = json.loads((tmp_path / f"{number}/metrics.jsonl").read_text())
        measured.append([record["loss"], record["grad_norm"], record["entropy"]])
    np.testing.assert_allclose(*measured, rtol=1e-5)


def test_a_cold_start_ends_when_it_answers_training_problems(tmp_path, capsys):
    changes = {"sft.steps": 9, "sft.batch": 4, "sft.stop_accuracy": 0.5, "sft.check_every": 2}
    ex = build(tiny_config(**changes, **{"sft.check_problems": 4}))
    last = [ex.task.train[len(ex.task.train) - n] for n in (1, 2, 3, 4)]
    right = iter([1, 1, 2])  # of the four, at steps 2, 4 and 6
    asked = []

    def rewarder(problems, completions):
        asked.append(problems)
        return SimpleNamespace(parts={"accuracy": np.arange(4)[:, None] < next(right)})

    with using(ex.mesh):
        params = jax.device_get(cold_start(ex, rewarder, tmp_path))
        records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
        capsys.readouterr()
        again = jax.device_get(cold_start(ex, rewarder, tmp_path))
    assert asked == [last] * 3
    assert [(r["step"], r.get("accuracy")) for r in records] == [
        *((1, None), (2, 0.25), (3, None), (4, 0.25), (5, None), (6, 0.5)),
    ]
    assert "step" not in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_only_the_chosen_examples_are_seen(ex):
    few = Solved(ex.task.train, 4)
    assert len(few) == 4 and few[3] == ex.task.train[3]
    with pytest.raises(IndexError):
        few[4]
    assert len(Solved(ex.task.heldout, 0)) == len(Solved(ex.task.heldout, 99)) == 8


def test_a_solution_that_does_not_fit_is_named(ex):
    short = build(tiny_config(**{"rollout.max_tokens": 10}))
    with pytest.raises(ValueError, match=r"worked solution of '.\+.=' has 1\d tokens; .*=10 must"):
        supervised_batch(short, [ex.task.train[0]])
