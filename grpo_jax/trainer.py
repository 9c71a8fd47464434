"""Reinforcement learning from verifiable rewards: Algorithm 1 of DeepSeekMath (2402.03300)."""

import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from grpo_jax import algorithms, checkpoints
from grpo_jax.evaluation import evaluate
from grpo_jax.experiment import Experiment
from grpo_jax.judges import PREFIX, judge_sources, with_judges
from grpo_jax.learner import make_optimizer, minibatches, prepare, refresh_reference, update
from grpo_jax.loop import Step, leaving_on_signals, run_steps
from grpo_jax.optimizer import Optimizer
from grpo_jax.pretrained import beginning, with_base
from grpo_jax.progress import announce_compilations, doing, say
from grpo_jax.rewards.call import refuse_large
from grpo_jax.rewards.evaluate import Rewarder, Scores, ending, scored_by
from grpo_jax.rollout.collect import Collected, collect, encode_batch, texts
from grpo_jax.rollout.sampler import sample
from grpo_jax.rollout.speculative import speculation_metrics
from grpo_jax.rollout.steps import judge_steps, step_rewards
from grpo_jax.runs import Run
from grpo_jax.sft import cold_start
from grpo_jax.sharding import put_batch, using
from grpo_jax.starting import check_begun, holding, reopen, start_run
from grpo_jax.summary import summary
from grpo_jax.tasks.loader import Counted, batches
from grpo_jax.tokenizers import prefill
from grpo_jax.train_state import Critic, abstract_state, init_state
from grpo_jax.types import Batch, Prompts, Rollouts, TrainState

LONG_S = 5.0  # a log has a line a step, and more only where a step takes long


def train(config: Any, workdir: Path) -> None:
    """Run, or go on with, the experiment of a resolved config in its run folder.

    The cold start, if any, is a run of its own in workdir/cold_start. A finished run says so.
    """
    began = time.monotonic()
    announce_compilations()
    ex = reopen(config, workdir)
    run = start_run(ex, workdir, judge_sources(config.rewards))
    called = [name for name in config.rewards if not name.startswith(PREFIX)]
    names = tuple(dict.fromkeys([*called, "accuracy"]))
    with holding(run), leaving_on_signals(), ex.rewarder(names) as rewarder, using(ex.mesh):
        _train(ex, run, rewarder, began)


def _train(ex: Experiment, run: Run, rewarder: Rewarder, began: float) -> None:
    c = ex.config
    problems = Problems(ex)
    judged = with_judges(rewarder, list(c.rewards), ex)
    judged = ending(judged, c.optimizer.max_bad_steps, lambda: problems.step)
    updates = c.steps * ex.algorithm.inner_epochs * ex.algorithm.minibatches
    learners = make_optimizer(c.optimizer, updates), make_critic(ex, updates)
    done, state = _start(ex, run, *learners, problems, rewarder)
    prompt = (ex.task.heldout if len(ex.task.heldout) else ex.task.train)[0].prompt
    if done == c.steps:
        say(f"{run.folder} is finished: all {c.steps} steps are done")
        say(summary(run.folder, prompt=prompt))
        return

    def held_out(state: TrainState) -> dict[str, Any]:
        return evaluate(ex, state.policy, rewarder, c.eval.problems, c.eval.samples)

    run_steps(
        run,
        c,
        (done, state),
        c.steps,
        partial(iteration, ex, *learners, judged, problems),
        lambda: problems.get_state() | run.kept(),
        held_out if c.eval.every else None,
    )
    say(f"{run.folder} is done (steps: {c.steps})")
    say(summary(run.folder, time.monotonic() - began, prompt))


def make_critic(ex: Experiment, updates: int) -> Critic | None:
    """The critic that the algorithm asks for, with its optimizer; None without one."""
    if ex.algorithm.critic == "none":
        return None
    chosen = ConfigDict(ex.config.optimizer.to_dict())
    chosen.learning_rate = chosen.critic_learning_rate or chosen.learning_rate
    return Critic(ex.algorithm.critic, make_optimizer(chosen, updates))


def _start(
    ex: Experiment,
    run: Run,
    optimizer: Optimizer,
    critic: Critic | None,
    problems: "Problems",
    rewarder: Rewarder,
) -> tuple[int | None, TrainState]:
    """The newest checkpoint's step and state, or None and what the cold start leads to."""
    c = ex.config
    options: Any = {"reference": ex.algorithm.beta > 0, "critic": critic}
    abstract = abstract_state(ex.model, optimizer, ex.mesh, **options)
    pending = _abstract_pending(ex, abstract) if c.rollout.overlap else None
    saved = abstract.replace(base=None, pending=pending)
    restored = checkpoints.restore_latest(run.checkpoints, saved)
    if restored is not None:
        state, position = restored
        problems.set_state(position)
        return position["step"], with_base(ex, state)
    check_begun(run)
    cold = run.folder / "cold_start"
    judge = partial(rewarder, names=("accuracy",))
    params = cold_start(ex, judge, cold) if c.sft.steps else beginning(ex)
    key = jax.random.key(c.seed)
    with doing("making the training state"):
        return None, init_state(ex.model, optimizer, key, ex.mesh, params=params, **options)


def iteration(
    ex: Experiment,
    optimizer: Optimizer,
    critic: Critic | None,
    submit: Callable[..., Callable[[], Scores]],
    problems: "Problems",
    state: TrainState,
    number: int,
) -> Step:
    """Sample groups, score them, compute advantages, update; the state is donated."""
    c = ex.config
    problems.step = number
    began = time.monotonic()
    gather = _overlapped if c.rollout.overlap else _in_turn
    rollout, pending = gather(ex, submit, problems, state, number)
    state = state.replace(pending=None)
    sampled = time.monotonic()
    batch = prepare(
        state,
        put_batch(rollout.rollouts, ex.mesh),
        put_batch(rollout.rewards, ex.mesh),
        put_batch(step_rewards(ex.tokenizer, rollout), ex.mesh),
        model=ex.model,
        algorithm=ex.algorithm,
        temperature=c.rollout.temperature,
    )
    advantages = np.asarray(batch.advantages[..., 0])
    explained = explained_variance(batch)
    with doing(f"updating, step {number}", log_after_s=LONG_S):
        state, metrics = _learn(ex, optimizer, critic, state, batch, number)
    now = time.monotonic()
    metrics |= rollout_metrics(rollout) | explained
    metrics |= {
        "data/dropped_prompts": problems.dropped,
        "time/step": now - began,
        "time/rollout": sampled - began,
        "time/update": now - sampled,
        "time/tokens_per_second": float(rollout.rollouts.mask.sum()) / (now - began),
    }
    state = state.replace(pending=pending)
    return Step(state, metrics, _samples(rollout, advantages, c.log.samples))


def _in_turn(ex: Experiment, submit, problems: "Problems", state: TrainState, number: int):
    """Sample a batch and score it: what the step learns from, and no rollouts that wait."""
    rollout = collect(
        lambda: next(problems),
        lambda drawn, extra: _with_texts(ex, _sample(ex, state, drawn, number, extra)),
        lambda drawn, told: _scored(ex, drawn, told, _waited(submit(drawn, told), number)),
        ex.algorithm.dynamic_sampling_rounds,
    )
    return rollout, None


def _overlapped(ex: Experiment, submit, problems: "Problems", state: TrainState, number: int):
    """Sample the next step's batch while this one's, sampled a step ago, is scored.

    The first step samples its own. The last samples no other, and leaves its own as what waits,
    so that all checkpoints are of one shape.
    """
    drawn = next(problems)
    if state.pending is None:
        rollouts = _sample(ex, state, drawn, number)
    else:
        rollouts = jax.device_get(state.pending).replace(prompts=_prompts(ex, drawn))
    rollouts, completions = _with_texts(ex, rollouts)
    scores = submit(drawn, completions)
    last = number == ex.config.steps
    pending = rollouts if last else _sample(ex, state, problems.peek(), number + 1)
    rewards, parts, timeouts, steps = _scored(ex, drawn, completions, _waited(scores, number))
    rollout = Collected(drawn, rollouts, completions, rewards, parts, timeouts, 0, steps)
    return rollout, pending.replace(prompts=None)


def _waited(scores: Callable[[], Scores], number: int) -> Scores:
    with doing(f"judging for step {number}", log_after_s=LONG_S):
        return scores()


class Problems:
    """The stream of training problems, P at a time, and its position in a checkpoint.

    What was only peeked at is still to come: a restored position comes to it again.
    """

    def __init__(self, ex: Experiment):
        """Problems of the experiment's task, over-long prompts dropped or refused."""
        c = ex.config
        self.step, self._keep = 0, Counted(ex.fits)
        self._data = batches(ex.task.train, c.rollout.prompts, c.seed, self._keep)
        self._peeked: tuple[list[Any], dict[str, Any]] | None = None

    @property
    def dropped(self) -> int:
        """How many have been."""
        return self._keep.dropped

    def __next__(self) -> list[Any]:
        drawn, self._peeked = self.peek(), None
        return drawn

    def peek(self) -> list[Any]:
        """What `next` will give."""
        if self._peeked is None:
            before = self._position()
            self._peeked = next(self._data), before
        return self._peeked[0]

    def get_state(self) -> dict[str, Any]:
        """The position, JSON-able."""
        return {"step": self.step} | (self._peeked[1] if self._peeked else self._position())

    def _position(self) -> dict[str, Any]:
        return {"dropped": self.dropped, "data": self._data.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a position."""
        self.step, self._keep.dropped = state["step"], state["dropped"]
        self._data.set_state(state["data"])
        self._peeked = None


def _prompts(ex: Experiment, problems) -> Prompts:
    c = ex.config
    return encode_batch(ex.tokenizer, problems, c.prompt_length, c.rollout.prompt_bucket)


def _sample(ex: Experiment, state: TrainState, problems, number: int, extra: int = 0) -> Rollouts:
    key = jax.random.fold_in(jax.random.fold_in(state.rng, number), extra)
    with doing(f"sampling for step {number}", log_after_s=LONG_S):
        rollouts = sample(
            ex.model,
            state.policy,
            put_batch(_prompts(ex, problems), ex.mesh),
            key,
            sampling=ex.sampling(),
            group=ex.config.rollout.group,
            stops=ex.stops,
        )
        return jax.device_get(rollouts)


def _abstract_pending(ex: Experiment, state: TrainState) -> Rollouts:
    """The shapes of rollouts that wait, to restore a checkpoint into."""
    shape, place = (ex.config.rollout.prompts, 1), NamedSharding(ex.mesh, PartitionSpec())
    prompts: Any = [jax.ShapeDtypeStruct(shape, kind) for kind in (jnp.int32, bool)]
    draw = partial(sample, ex.model, sampling=ex.sampling(), group=ex.config.rollout.group)
    rollouts = jax.eval_shape(draw, state.policy, Prompts(*prompts), state.rng)
    return jax.tree.map(lambda x: x.update(sharding=place), rollouts.replace(prompts=None))


def _with_texts(ex: Experiment, rollouts: Any) -> tuple[Rollouts, list[list[str]]]:
    return rollouts, texts(ex.tokenizer, rollouts.tokens, rollouts.mask, ex.config.rollout.stop)


def _scored(ex: Experiment, problems, completions, scores: Scores):
    """What `collect` wants of a batch; a completion that a reward hung or died on abstains."""
    weights = ex.config.rewards.to_dict()
    asked = {name: [[scored_by(problem, name)] for problem in problems] for name in weights}
    parts = [np.where(asked[name], scores.parts[name], np.nan) for name in weights]
    combined = algorithms.combine_rewards(
        jnp.where(scores.lost, jnp.nan, jnp.stack(parts)),
        jnp.array(list(weights.values()), jnp.float32),
        ex.algorithm.reward_combination,
        std_ddof=ex.algorithm.std_ddof,
        std_eps=ex.algorithm.std_eps,
    )
    rewards = np.asarray(combined)
    normalised = ex.algorithm.reward_combination != "sum"
    refuse_large(problems, completions, np.stack(parts) if normalised else rewards[None])
    steps = None
    if algorithms.needs_steps(ex.algorithm):
        held = partial(prefill, ex.tokenizer)
        steps = judge_steps(ex.task, problems, completions, held)
    return rewards, scores.parts, scores.timeouts, steps


def _learn(ex: Experiment, optimizer, critic, state: TrainState, batch, number: int):
    """Every minibatch's update, and the mean of their metrics."""
    c, algorithm = ex.config, ex.algorithm
    history = []
    for part in minibatches(batch, algorithm, (c.seed, number)):
        state, metrics = update(
            state,
            part,
            model=ex.model,
            optimizer=optimizer,
            algorithm=algorithm,
            temperature=c.rollout.temperature,
            accumulation=c.optimizer.accumulation,
            mesh=ex.mesh,
            critic=critic,
        )
        history.append(metrics)
        if algorithm.kl_stop is not None and float(metrics["approx_kl"]) > algorithm.kl_stop:
            break
    if algorithm.reference_refresh and number % algorithm.reference_refresh == 0:
        moved = refresh_reference(state.ref_params, state.policy, algorithm.reference_mix)
        state = state.replace(ref_params=moved)
    history = jax.device_get(history)
    metrics = {name: np.mean([h[name] for h in history]) for name in history[0]}
    for name in ("skipped_updates", "skipped_in_a_row"):
        metrics[name] = history[-1][name]
    return state, metrics


def explained_variance(batch: Batch) -> dict[str, float]:
    """1 - var(returns - values) / var(returns) over tokens: 1 for a critic that knows, 0 for one
    that knows the mean; nothing without a critic."""
    if batch.values is None:
        return {}
    values, returns, mask = jax.device_get((batch.values, batch.returns, batch.mask))
    spread = np.var(returns[mask])
    return {"val/explained_variance": 1 - np.var((returns - values)[mask]) / max(spread, 1e-9)}


def rollout_metrics(rollout: Collected) -> dict[str, float]:
    """TRL's metrics of a rollout: rewards [P, G], their parts, and completion lengths in tokens."""
    with warnings.catch_warnings():  # what abstained throughout has no mean: NaN, and no warning
        warnings.simplefilter("ignore", RuntimeWarning)
        return {name: float(value) for name, value in _rollout_metrics(rollout).items()}


def _rollout_metrics(rollout: Collected) -> dict[str, Any]:
    rewards, lengths = rollout.rewards, rollout.rollouts.mask.sum(-1)
    finished = rollout.rollouts.finished
    metrics = {
        "reward": np.nanmean(rewards),
        "reward_std": np.nanmean(np.nanstd(rewards, axis=-1, ddof=min(1, rewards.shape[1] - 1))),
        "frac_reward_zero_std": 1.0 - rollout.spread.mean(),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/clipped_ratio": 1.0 - finished.mean(),
        "rewards/timeouts": rollout.timeouts,
        "dynamic_sampling/rounds": rollout.rounds,
    }
    for name, values in rollout.parts.items():
        metrics[f"rewards/{name}/mean"] = np.nanmean(values)
        metrics[f"rewards/{name}/std"] = np.nanstd(values)
    if rollout.steps is not None:
        judged = [reward for group in rollout.steps for one in group for _, reward in one]
        metrics["rewards/steps/mean"] = np.mean(judged)
        metrics["rewards/steps/number"] = len(judged) / rewards.size  # a completion
    return metrics | speculation_metrics(rollout.rollouts)


def _samples(rollout: Collected, advantages: np.ndarray, n: int) -> list[dict[str, Any]]:
    """The first completions of the first n problems, for people to read."""
    return [
        {
            "prompt": str(problem.prompt),
            "completion": rollout.completions[i][0],
            "rewards": {name: float(part[i, 0]) for name, part in rollout.parts.items()},
            "advantage": float(advantages[i, 0]),
        }
        for i, problem in enumerate(rollout.problems[:n])
    ]
