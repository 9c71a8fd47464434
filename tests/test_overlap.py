"""Rewards computed while the next batch is sampled: the same steps, on batches one update old."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import compile_fast, graded_by, sevens, tiny_config  # noqa: F401

from grpo_jax.engines.base import completion_keys
from grpo_jax.engines.lockstep import sample
from grpo_jax.learning.optimizer import make_optimizer
from grpo_jax.learning.prepare import prepare
from grpo_jax.learning.state import init_state
from grpo_jax.learning.update import update
from grpo_jax.rewards import Rewarder, RewardError
from grpo_jax.rollout import sources
from grpo_jax.rollout.play import encode_batch, texts
from grpo_jax.runs import checkpoints
from grpo_jax.runs.trackers import jsonl
from grpo_jax.sharding import put_batch, using
from grpo_jax.tasks import Problem
from grpo_jax.tasks.loader import batches
from grpo_jax.training import loop, rl_step
from grpo_jax.training import rl as trainer
from grpo_jax.training.experiment import build

STEPS = 5
OPTIONS = {
    **{"rollout.source": "overlapped", "algorithm.tis_mode": "truncate", "algorithm.beta": 0.0},
    **{"steps": STEPS, "rewards": {"tiny:sevens": 1.0}, "optimizer.learning_rate": 3e-2},
    # Some prompts are dropped, so that a position is more than a step.
    **{"task": {"name": "countdown"}, "prompt_length": 9, "overlong_prompts": "drop"},
    **{"rollout.max_tokens": 6, "checkpoint.every": 2},
}
OVERLAP = tiny_config(**OPTIONS)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a run that nothing interrupts, and what it did in which order."""
    events, folder = [], tmp_path_factory.mktemp("straight")

    def noting(name, function):
        def noted(*args, **options):
            events.append(name)
            result = function(*args, **options)
            return noting("wait", result) if name == "submit" else result

        return noted

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((sources, "generate"), (rl_step, "update"), (Rewarder, "submit")):
            patch.setattr(owner, name, noting(name, getattr(owner, name)))
        trainer.train(OVERLAP, folder)
    return folder, events


def test_a_batch_is_sampled_while_the_one_before_is_scored(straight):
    step = ["submit", "generate", "wait", "update"]
    assert straight[1] == ["generate", *step * (STEPS - 1), "submit", "wait", "update"]


def by_hand(ex, late):
    """The parameters and mean rewards of a loop on batches that are `late` updates old."""
    optimizer = make_optimizer(ex.config.optimizer, STEPS)
    state = init_state(ex.model, optimizer, jax.random.key(0), ex.mesh, reference=False)
    data = batches(ex.task.train, 4, 0, ex.fits)
    policies, means, drifted = [], [], []
    options = {"model": ex.model, "algorithm": ex.algorithm, "temperature": 1.0}
    for n in range(STEPS):
        policies.append(jax.tree.map(jnp.copy, state.policy.full))
        prompts = put_batch(encode_batch(ex.tokenizer, next(data), 9, 8), ex.mesh)
        keys = completion_keys(state.rng, n + 1, np.arange(4), 4)
        sampler = policies[max(n - late, 0)]
        rollouts = sample(ex.model, sampler, prompts, keys, sampling=ex.sampling())
        written = texts(ex.tokenizer, *jax.device_get((rollouts.tokens, rollouts.mask)))
        rewards = np.array([sevens(None, group) for group in written], np.float32)
        means.append(rewards.mean())
        batch = prepare(state, rollouts, put_batch(rewards, ex.mesh), **options)
        drift = np.exp(np.where(rollouts.mask, batch.logp_old - rollouts.logp, 0.0))
        np.testing.assert_allclose(batch.correction, np.minimum(drift, 2.0), rtol=1e-5)
        drifted.append(np.abs(drift - 1).max() > 1e-3)
        assert (late and n) or not drifted[-1]
        state, _ = update(state, batch, optimizer=optimizer, mesh=ex.mesh, **options)
    assert any(drifted) == (late > 0)
    return jax.device_get(state.policy.trained), means


def test_every_step_learns_from_a_batch_that_is_one_update_old(straight):
    params, _ = checkpoints.restore_params(straight[0] / "checkpoints")
    found = [record["reward"] for record in lines(straight[0] / "metrics.jsonl")]
    ex = build(OVERLAP)
    with using(ex.mesh):
        (expected, means), (_, in_turn) = by_hand(ex, late=1), by_hand(ex, late=0)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    np.testing.assert_allclose(found, means, rtol=1e-6)
    assert found[0] == pytest.approx(in_turn[0]) and found != pytest.approx(in_turn)


class Killed(BaseException):
    """Nothing of this process but its files is left."""


PLACES = {
    "sample": (sources, "generate"),
    "reward": (sources, "_graded"),
    "update": (rl_step, "update"),
    "line": (jsonl, "append_line"),
}
# Where a start of the same command ends, and the newest step that is saved then.
STARTS = [
    (("sample", 2, Killed), None),  # while the first batch is scored
    (("update", 1, signal.SIGTERM), 1),
    (("line", 6, Killed), 2),  # the first of step 3: a step's four samples are lines too
    (("reward", 1, signal.SIGINT), 3),
]


def strike(patch, place, call, how):
    owner, name = PLACES[place]
    original, calls = getattr(owner, name), iter(range(1, 10**6))

    def patched(*args, **options):
        result = original(*args, **options)
        if next(calls) == call:
            if how is Killed:
                raise Killed
            os.kill(os.getpid(), how)
        return result

    patch.setattr(owner, name, patched)


def lines(path):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in records]


def test_a_run_that_is_killed_over_and_over_ends_as_one_that_never_was(straight, tmp_path):
    for (place, call, how), saved in STARTS:
        ending = Killed if how is Killed else loop.Interrupted
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ending):
            strike(patch, place, call, how)
            trainer.train(OVERLAP, tmp_path)
        found = checkpoints.steps(tmp_path / "checkpoints")
        assert (found[-1] if found else None) == saved, (place, call)
    trainer.train(OVERLAP, tmp_path)
    for name in ("metrics.jsonl", "completions.jsonl"):
        assert lines(tmp_path / name) == lines(straight[0] / name)
    dropped = [record["data/dropped_prompts"] for record in lines(tmp_path / "metrics.jsonl")]
    assert len(dropped) == STEPS and dropped == sorted(dropped) and dropped[0] < dropped[-1]
    two = [checkpoints.restore_params(f / "checkpoints") for f in (straight[0], tmp_path)]
    assert two[0][1] == two[1][1] == STEPS
    jax.tree.map(np.testing.assert_array_equal, two[0][0], two[1][0])


def test_a_reward_that_kills_its_process_is_told_of_and_the_run_goes_on(tmp_path, capsys):
    changes = {"steps": 2, "rollout.prompts": 2, "rewards": {"tiny:even": 1.0, "tiny:deadly": 1.0}}
    trainer.train(tiny_config(**OPTIONS | changes), tmp_path)
    records, written = (lines(tmp_path / f"{name}.jsonl") for name in ("metrics", "completions"))
    assert len(records) == 2 and all(r["reward"] is not None for r in records)
    assert sum(r["rewards/timeouts"] for r in records) > 0
    noted = [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning: reward")]
    assert len(noted) == sum(r["rewards/timeouts"] > 0 for r in records)
    assert all("'tiny:deadly' killed its process (exit status 3)" in line for line in noted)
    for record in written:
        lost = record["completion"].startswith(("7", "8", "9"))
        assert (record["rewards"]["tiny:deadly"] is None) == lost
        assert record["rewards"]["tiny:even"] is not None


def test_a_reward_that_is_always_lost_ends_the_run_with_its_name(straight, tmp_path, monkeypatch):
    def lose(self, calls, groups, parts):
        lost = [call for call in calls if call[0] == "tiny:sevens"]
        return {(name, p, g): "took more than 5 s" for name, p, _ in lost for g in range(4)}

    monkeypatch.setattr(Rewarder, "_run", lose)
    noted = (
        r"'tiny:sevens' took more than 5 s for every completion of 2 steps in a row \(optimizer.m"
    )
    with pytest.raises(RewardError, match=noted):
        trainer.train(tiny_config(**OPTIONS, **{"optimizer.max_bad_steps": 2}), tmp_path)
    (record,) = lines(tmp_path / "metrics.jsonl")
    assert record["rewards/timeouts"] == 16 and record["reward"] is None


def test_a_completion_that_lost_one_of_its_rewards_abstains():
    ex = build(tiny_config(**{"rewards": {"accuracy": 1.0, "format": 2.0}}))
    nan = np.nan  # `format` hung on the first, and abstains on the second
    parts = {"accuracy": np.ones((1, 3)), "format": np.array([[nan, nan, 1]])}
    lost = np.array([[True, False, False]])
    problems = [Problem("1+1=", {"answer": "2"})]
    graded = graded_by(ex, problems, [[""] * 3], parts, timeouts=1, lost=lost)
    np.testing.assert_array_equal(graded.rewards, [[nan, 1, 3]])
    assert graded.parts == parts and graded.timeouts == 1 and graded.steps is None
