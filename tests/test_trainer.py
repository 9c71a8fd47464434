"""The whole loop on a reward that anything learns, and its parts on stubs."""

import json
import os
import re
import signal
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from documented import undocumented
from tiny import compile_fast, graded_by, tiny_config  # noqa: F401

from grpo_jax.console import progress
from grpo_jax.engines.speculative import speculation_metrics
from grpo_jax.errors import UsageError
from grpo_jax.learning.optimizer import make_optimizer
from grpo_jax.learning.policy import Policy
from grpo_jax.learning.state import TrainState, abstract_state
from grpo_jax.rewards.evaluate import RewardError
from grpo_jax.rollout.grade import Graded
from grpo_jax.rollout.play import Episodes
from grpo_jax.runs import checkpoints
from grpo_jax.runs.checkpoints import restore_params
from grpo_jax.runs.run import open_run
from grpo_jax.sharding import make_mesh
from grpo_jax.tasks import Problem
from grpo_jax.tasks.loader import Stream
from grpo_jax.training import loop, rl_step
from grpo_jax.training import rl as trainer
from grpo_jax.training.experiment import build
from grpo_jax.types import Batch, Rollouts

STEPS = 24
EASY = {
    **{"steps": STEPS, "rewards": {"tiny:sevens": 1.0}, "task.digits": 1},
    **{"rollout.max_tokens": 6, "rollout.prompts": 4, "optimizer.learning_rate": 3e-2},
    **{"algorithm.beta": 0.001, "algorithm.reference_refresh": STEPS, "checkpoint.every": 0},
}
LEARNS = tiny_config(**EASY)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("learns")
    trainer.train(LEARNS, workdir)
    return workdir


def test_training_raises_a_trivial_reward(learnt):
    records = [json.loads(line) for line in (learnt / "metrics.jsonl").open()]
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))
    rewards = [r["reward"] for r in records]
    assert np.mean(rewards[:4]) < 0.25 and np.mean(rewards[-4:]) > 0.75
    assert max(r["sampling/sampling_logp_difference/mean"] for r in records) < 1e-4
    assert records[0]["kl"] == pytest.approx(0, abs=1e-6) and records[-1]["kl"] > 0.1
    assert not (learnt / "eval.jsonl").exists()  # eval.every is 0
    assert not undocumented(learnt / "metrics.jsonl")
    for r in records:
        assert 0 <= r["time/reward"] <= r["time/rollout"] <= r["time/step"]
    assert records[0]["time/compilations"] > 0 and records[-1]["time/checkpoint"] == 0


def test_the_stored_samples_are_those_of_the_step(learnt):
    samples = [json.loads(line) for line in (learnt / "completions.jsonl").open()]
    assert len(samples) == STEPS * 4
    for sample in samples:
        text = sample["completion"]
        share = text.count("7") / max(len(text), 1)
        assert sample["rewards"]["tiny:sevens"] == pytest.approx(share)


def test_the_reference_was_refreshed_and_is_saved(learnt):
    ex = build(LEARNS)
    optimizer = make_optimizer(LEARNS.optimizer, STEPS)
    like = abstract_state(ex.model, optimizer, ex.mesh, reference=True)
    state, position, _ = checkpoints.restore_latest(learnt / "checkpoints", like)
    assert position["step"] == int(state.step) == STEPS
    jax.tree.map(np.testing.assert_array_equal, state.reference, state.policy.trained)


def test_a_finished_run_says_so_and_its_result_again(learnt, capsys):
    trainer.train(LEARNS, learnt)
    message = capsys.readouterr().out
    assert f"{learnt} is finished: all {STEPS} steps are done" in message
    assert re.search(r"result +reward 0\.[01]\d+ -> 0\.[789]\d+ \(means of the first and", message)
    assert f"{learnt}/curves.png" in message and f"experiments.sample --model={learnt} " in message


def graded_of(rollouts, rewards, parts, measure=None):
    episodes = Episodes(problems=[], rollouts=rollouts, completions=[], measure=measure)
    return Graded(episodes=episodes, rewards=rewards, parts=parts, timeouts=3, rounds=1)


def test_metrics_of_a_rollout():
    nan = np.nan
    rewards = np.array([[1, 0, 0.5], [nan, nan, 2], [1, 1, 1], [nan] * 3], np.float32)
    mask = np.arange(5) < np.array([[5, 2, 1], [3, 3, 3], [1, 1, 1], [4, 4, 4]])[..., None]
    finished = np.array([[0, 1, 1]] * 4, bool)
    rollouts = Rollouts(
        prompts=None,
        tokens=mask * 1,
        mask=mask,
        logp=mask * 0.0,
        entropy=mask * 0.0,
        finished=finished,
    )
    parts = {"a": rewards * 2, "b": rewards * nan}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rl_step.rollout_metrics(graded_of(rollouts, rewards, parts))
    assert found["reward"] == pytest.approx(6.5 / 7)
    assert found["reward_std"] == pytest.approx((0.5 + 0) / 2)  # of groups with two scores
    assert found["frac_reward_zero_std"] == 3 / 4
    assert found["rewards/a/mean"] == pytest.approx(13 / 7)
    assert found["rewards/a/std"] == pytest.approx(np.std([2, 0, 1, 4, 2, 2, 2]))
    assert np.isnan(found["rewards/b/mean"])
    lengths = [found[f"completions/{name}_length"] for name in ("mean", "min", "max")]
    assert lengths == [32 / 12, 1, 5]
    assert found["completions/clipped_ratio"] == pytest.approx(1 / 3)
    assert (found["rewards/timeouts"], found["dynamic_sampling/rounds"]) == (3, 1)
    drafted, accepted = np.full((2, 4, 3), 2)
    rollouts = rollouts.replace(extras={"drafted": drafted, "accepted": accepted - 1})
    more = rl_step.rollout_metrics(graded_of(rollouts, rewards, {}, speculation_metrics))
    assert {k: v for k, v in more.items() if k.startswith("speculative/")} == {
        "speculative/acceptance_rate": 1 / 2,
        "speculative/tokens_per_step": 20 / 24,
    }


def test_a_problem_is_scored_by_the_rewards_it_asks_for():
    ex = build(tiny_config(**{"rewards": {"accuracy": 1.0, "format": 0.5}}))
    columns = ({}, {"rewards": ["format"]}, {"rewards": []})
    problems = [Problem(f"{i}+1=", {"answer": "2", **more}) for i, more in enumerate(columns)]
    parts = {"accuracy": np.ones((3, 2), np.float32), "format": np.ones((3, 2), np.float32)}
    graded = graded_by(ex, problems, [["", ""]] * 3, parts)
    rewards = graded.rewards
    assert rewards[:2].tolist() == [[1.5, 1.5], [0.5, 0.5]] and np.isnan(rewards[2]).all()
    assert graded.parts == parts
    with pytest.raises(UsageError, match=r"parts.sums.rewards: 'no' is not among config.rewards"):
        parts = {"sums": {"name": "addition", "rewards": ("no",)}, "countdown": {}}
        tiny_config(task={"name": "mixture", "parts": parts})


def test_rewards_too_large_for_float32_are_refused_in_one_line():
    ex = build(tiny_config(**{"rewards": {"accuracy": 1e10, "format": 0.5}}))
    problems = [Problem("1+1=", {"answer": "2"})]
    for reward, combination in ((2e38, "sum"), (2e8, "sum"), (2e38, "normalize_each")):
        parts = {name: np.full((1, 2), reward, np.float32) for name in ("accuracy", "format")}
        message = r"are (2e\+[13]8|inf) for the prompt '1\+1=', completion 'x'; valid: up to 1e\+18"
        with pytest.raises(RewardError, match=message):
            graded_by(ex, problems, [["x", "y"]], parts, combination)


def test_speculative_decoding_needs_a_layer_that_drafts():
    with pytest.raises(UsageError, match=r"rollout.engine='speculative' .*: model.mtp=1, not 0"):
        build(tiny_config(**{"rollout.engine": "speculative"}))


def test_a_drafting_model_learns_from_what_it_sampled_by_its_drafts(tmp_path):
    """Speculative decoding in the whole loop: the learner's log-probs are the sampler's."""
    trainer.train(
        tiny_config(**EASY, **{"model.mtp": 1, "rollout.engine": "speculative"}), tmp_path
    )
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    rewards = [r["reward"] for r in records]
    assert np.mean(rewards[:4]) < 0.25 and np.mean(rewards[-4:]) > 0.75
    assert max(r["sampling/sampling_logp_difference/mean"] for r in records) < 1e-4
    for r in records:
        assert 0 <= r["speculative/acceptance_rate"] <= 1 <= r["speculative/tokens_per_step"] <= 2
    # Where all completions come to be alike, drafts come to be right.
    accepted = [r["speculative/acceptance_rate"] for r in records]
    assert np.mean(accepted[-4:]) > max(0.5, np.mean(accepted[:4]))


def test_dropped_prompts_are_counted_and_the_position_holds():
    ex = build(tiny_config(**{"overlong_prompts": "drop", "prompt_length": 4}))
    train = [SimpleNamespace(prompt=p, columns={}) for p in ("1+1=", "22+2=", "3+3=", "4+444=")]
    problems = Stream(train, ex.config.rollout.prompts, 0, ex.fits)
    first = [p.prompt for p in next(problems)]
    assert sorted(first) == ["1+1="] * 2 + ["3+3="] * 2
    assert problems.dropped >= 3
    state = json.loads(json.dumps(problems.get_state()))
    rest = [next(problems) for _ in range(3)]
    again = Stream(train, ex.config.rollout.prompts, 0, ex.fits)
    again.set_state(state)
    assert again.dropped == state["dropped"]
    assert [next(again) for _ in range(3)] == rest and again.dropped == problems.dropped


def test_a_rollout_is_left_once_the_policy_is_far_enough(monkeypatch):
    """kl_stop, after the second of six updates; the metrics are means, the counts the last."""
    drift = iter([0.01, 0.2, 0.3])

    def update(state, batch, **options):
        kl = next(drift)
        return state + 1, {"approx_kl": kl, "skipped_updates": state, "skipped_in_a_row": 1}

    monkeypatch.setattr(rl_step, "update", update)
    changes = {"algorithm.kl_stop": 0.1, "algorithm.inner_epochs": 3, "algorithm.minibatches": 2}
    ex = build(tiny_config(**changes))
    names = ("prompts", "tokens", "mask", "advantages", "logp_rollout")
    batch = Batch(**dict.fromkeys(names, np.zeros((4, 2, 1))))
    algorithm = ex.algorithm
    learner = SimpleNamespace(algorithm=algorithm, seed=0)
    for name in ("model", "optimizer", "critic", "temperature", "accumulation", "mesh"):
        setattr(learner, name, None)
    state, metrics = rl_step.learn(learner, 0, batch, 1)
    assert state == 2
    assert metrics == {
        "approx_kl": pytest.approx(0.105),
        "skipped_updates": 1,
        "skipped_in_a_row": 1,
    }


def state_of(x):
    """A TrainState that holds one number."""
    return TrainState(step=None, policy=Policy(trained={"x": x}), opt_state=None, rng=None)


@pytest.fixture
def steps(tmp_path):
    """Runs the loop on a counter instead of a model: what each step does, and what it returns."""
    changes = {"checkpoint.every": 2, "eval.every": 2, "optimizer.max_bad_steps": 3}
    sample = {"prompt": "1+1=", "completion": "2", "rewards": {}, "advantage": 0.0}
    seen = []

    def run(act, total=6, done=None, last=None, **more):
        config = tiny_config(**changes | more)
        run = open_run(tmp_path, config)

        def step(state, number):
            seen.append(number)
            metrics = {"skipped_in_a_row": act(number) or 0, "x": float(state.policy.trained["x"])}
            return loop.Step(
                state_of(state.policy.trained["x"] + 1), metrics, [sample], number == last
            )

        state = state_of(jnp.float32(done or 0))
        stage = loop.Stage(
            name="counter",
            total=total,
            mesh=make_mesh(),
            like=state,
            begin=lambda: state,
            complete=lambda state: state,
            source=SimpleNamespace(get_state=lambda: {"n": seen[-1]}),
            step=step,
            evaluate=lambda state: {"accuracy": float(state.policy.trained["x"])},
        )
        try:
            state = loop.run_stage(run, config, stage, loop.Begun(done, state, False))
            return float(state.policy.trained["x"])
        finally:
            run.close()

    return tmp_path, seen, run


def values(path, name):
    return [(r["step"], r[name]) for r in map(json.loads, path.open())]


def test_the_loop_records_evaluates_and_saves_when_due(steps):
    folder, seen, run = steps
    assert run(lambda number: 0, total=5) == 5
    assert seen == [1, 2, 3, 4, 5]
    assert values(folder / "metrics.jsonl", "x") == [(n, n - 1.0) for n in seen]
    assert values(folder / "eval.jsonl", "accuracy") == [(n, float(n)) for n in (0, 2, 4, 5)]
    assert checkpoints.steps(folder / "checkpoints") == [4, 5]
    like = state_of(jax.ShapeDtypeStruct((), jnp.float32, sharding=jnp.float32(0).sharding))
    state, position, _ = checkpoints.restore_latest(folder / "checkpoints", like)
    assert state == state_of(5.0) and position["n"] == position["step"] == 5
    assert (position["stage"], position["ended"]) == ("counter", False)


def test_a_run_without_steps_saves_its_beginning(steps):
    folder, seen, run = steps
    seen.append(0)
    assert run(lambda number: 0, total=0) == 0
    assert values(folder / "eval.jsonl", "accuracy") == [(0, 0.0)]
    assert checkpoints.steps(folder / "checkpoints") == [0]


def test_a_last_step_is_evaluated_and_saved(steps):
    folder, seen, run = steps
    assert run(lambda number: 0, last=3) == 3
    assert seen == [1, 2, 3]
    assert [step for step, _ in values(folder / "eval.jsonl", "accuracy")] == [0, 2, 3]
    assert checkpoints.steps(folder / "checkpoints") == [2, 3]


def test_a_step_tells_how_long_it_compiled(steps):
    folder, _, run = steps

    def act(number):
        if number == 2:
            jax.jit(lambda x: 3 * x)(1)

    run(act, total=3)
    second, third = values(folder / "metrics.jsonl", "time/compile")[1:]
    assert second[1] > 0 and third[1] == 0
    assert values(folder / "metrics.jsonl", "time/compilations")[1:] == [(2, 1.0), (3, 0.0)]


def test_the_time_of_a_checkpoint_goes_to_the_step_after_it(steps):
    folder, _, run = steps
    run(lambda number: 0, total=5)
    saved = [seconds > 0 for _, seconds in values(folder / "metrics.jsonl", "time/checkpoint")]
    assert saved == [False, False, True, False, True]


def test_steps_are_traced_and_completions_kept_now_and_then(steps, capsys):
    folder, _, run = steps
    log = {"log.profile_steps": (2, 3), "log.samples_every": 2}
    run(lambda number: 0, total=5, **log)
    assert list((folder / "profile").rglob("*.xplane.pb"))
    assert f"the trace of steps 2 to 3 is in {folder}/profile" in capsys.readouterr().out
    kept = [json.loads(line) for line in (folder / "completions.jsonl").open()]
    assert [record["step"] for record in kept] == [2, 4, 5]


def test_gradients_that_are_not_finite_stop_the_run_with_a_word(steps):
    folder, seen, run = steps
    with pytest.raises(UsageError, match=r"step 5: .* 3 times in a row .*max_bad_steps=3"):
        run(lambda number: max(0, number - 2))
    assert seen[-1] == 5 and checkpoints.steps(folder / "checkpoints") == [2, 4]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_end_saves_and_leaves(steps, capsys, number):
    folder, seen, run = steps
    before = signal.getsignal(number)
    with pytest.raises(loop.Interrupted) as raised:
        run(lambda step: os.kill(os.getpid(), number) if step == 3 else 0)
    assert raised.value.code == 128 + number and seen == [1, 2, 3]
    assert checkpoints.steps(folder / "checkpoints") == [2, 3]
    assert "interrupted after step 3, which is saved" in capsys.readouterr().err
    assert signal.getsignal(number) is before
    assert run(lambda step: 0, done=3) == 6
    assert values(folder / "metrics.jsonl", "x") == [(n, n - 1.0) for n in range(1, 7)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process(steps, number):
    def struck(step):
        os.kill(os.getpid(), number)
        assert [signal.getsignal(each) for each in loop.STOPPING] == [signal.SIG_DFL] * 2

    with pytest.raises(loop.Interrupted):
        steps[2](struck)


def test_a_signal_between_the_steps_leaves_with_a_word(capsys):
    with pytest.raises(loop.Interrupted), loop.leaving_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert "run the same command again" in capsys.readouterr().err


def test_a_run_starts_from_another_and_says_what_it_does(learnt, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    config = tiny_config(
        **EASY | {"steps": 1, "optimizer.learning_rate": 0.0, "start": str(learnt)}
    )
    trainer.train(config, tmp_path / "next")
    before, after = (restore_params(f / "checkpoints")[0] for f in (learnt, tmp_path / "next"))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    cold = {"sft.steps": 1, "sft.learning_rate": 0.0, "rollout.max_tokens": 18}
    cold |= {"eval.every": 1, "eval.problems": 2}
    config = tiny_config(**EASY | cold | {"steps": 0, "start": str(learnt)})
    capsys.readouterr()
    trainer.train(config, tmp_path / "cold")
    words = [
        *("reading the task 'addition'", "starting the rewards' processes"),
        "making the training state ...",
        *("cold start on worked solutions (sft.steps=1)", "step 1/1  loss ", "saving step 1 ..."),
        *("drawing curves.png", "the cold start is done after step 1: loss ", "cold_start/curves"),
        *("making the training state", "evaluating at step 0 ...", "judging 2 completions ..."),
        *("eval at step 0: accuracy 0", "saving step 0 ...", "drawing curves.png"),
        *(
            "cold is done (steps: 0)",
            "  result  held-out accuracy 0.",
            "  time ",
            "cold/curves.png",
        ),
    ]
    message, at = capsys.readouterr().out, 0
    for word in words:
        at = message.find(word, at) + len(word)
        assert at >= len(word), (word, message)
    assert not undocumented(
        tmp_path / "cold/cold_start/metrics.jsonl", tmp_path / "cold/eval.jsonl"
    )
    after = restore_params(tmp_path / "cold/cold_start/checkpoints")[0]
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_a_start_of_another_model_or_of_none_is_refused(learnt, tmp_path):
    config = tiny_config(**EASY | {"start": str(learnt), "model.hidden": 32})
    with pytest.raises(UsageError, match=r"another model: embed/embedding has shape \(\d+, 16\), "):
        trainer.train(config, tmp_path / "wide")
    with pytest.raises(UsageError, match=r"config.start: .*nothing holds no run"):
        trainer.train(tiny_config(**EASY | {"start": str(tmp_path / "nothing")}), tmp_path / "none")
