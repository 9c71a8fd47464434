"""Reinforcement learning from verifiable rewards: Algorithm 1 of DeepSeekMath (2402.03300)."""

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from grpo_jax.algorithms import Algorithm
from grpo_jax.console.progress import announce_compilations, doing, say
from grpo_jax.errors import UsageError
from grpo_jax.files import Json, at_home
from grpo_jax.hosts import fetch
from grpo_jax.learning.microbatches import minibatches
from grpo_jax.learning.optimizer import Optimizer, make_optimizer
from grpo_jax.learning.prepare import needs_old, prepare
from grpo_jax.learning.state import Critic, TrainState, abstract_state, init_state
from grpo_jax.learning.update import refresh_reference, update
from grpo_jax.models import flops
from grpo_jax.models.decoder import Decoder
from grpo_jax.rewards.evaluate import Failures, Rewarder
from grpo_jax.rollout.grade import Graded, Grader, step_rewards
from grpo_jax.rollout.sources import LONG_S, Making, RolloutSource, make_source
from grpo_jax.runs.summary import COLD, summary
from grpo_jax.runs.trackers.base import Tracker
from grpo_jax.sharding import put_batch
from grpo_jax.tasks import Task
from grpo_jax.tasks.loader import Stream
from grpo_jax.tokenizers import TextTokenizer
from grpo_jax.training.evaluation import evaluate_policy
from grpo_jax.training.experiment import Experiment
from grpo_jax.training.load_reward_model import PREFIX, load_reward_models, reward_model_sources
from grpo_jax.training.loading import Model, SavedRun, live_model, load_run
from grpo_jax.training.loop import Stage, Step, begin_or_resume, leaving_on_signals, steps_of
from grpo_jax.training.objects import Rewards, name_objects
from grpo_jax.training.pretrained import load_initial_params, with_base
from grpo_jax.training.profiling import peak_flops
from grpo_jax.training.sft import cold_start
from grpo_jax.training.starting import holding, reopen, start_run
from grpo_jax.types import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainStep:
    """The result of step `number`.

    metrics     as a line of metrics.jsonl, without the step
    samples     completions, each with its prompt, rewards and advantage
    evaluation  as a line of eval.jsonl; None where this step was not evaluated
    model       as it is now: the next step takes its arrays
    """

    number: int
    metrics: dict[str, float]
    samples: list[Json]
    evaluation: Json | None
    model: Model


Callback = Callable[[TrainStep], object]


def train(
    config: ConfigDict | FrozenConfigDict,
    workdir: Path | str,
    *,
    rewards: Rewards | None = None,
    task: Task | None = None,
    trackers: Sequence[Tracker] = (),
    callbacks: Sequence[Callback] = (),
) -> SavedRun:
    """Run an experiment in its run folder, or resume it; returns the run.

    config     its fields; presets are filled in
    workdir    its folder: the same call resumes where it was cut off, exactly
    rewards    in place of config.rewards: functions by name, or a list of functions and of names as
               config.rewards has them; each weighs what config.rewards says, or 1
    task       in place of config.task
    trackers   record the run besides those in config.log.trackers, which record the cold start
               too, if there is one
    callbacks  called with each step's `TrainStep`; where one raises, the run ends with that step
               saved, and UsageError

    The cold start, if any, is a separate run in workdir/cold_start. A finished run says so.
    UsageError for what cannot be, naming the field.
    """
    folder = at_home(workdir)
    taken = steps(config, folder, rewards=rewards, task=task, trackers=trackers)
    with leaving_on_signals(), contextlib.closing(taken):
        for step in taken:
            for callback in callbacks:
                _call(callback, step, folder)
    return load_run(folder)


def _call(callback: Callback, step: TrainStep, folder: Path) -> None:
    """Call a callback; UsageError for what it raises, and Ctrl-C as it is."""
    try:
        callback(step)
    except Exception as error:
        name = getattr(callback, "__name__", type(callback).__name__)
        raise UsageError(
            f"callback {name!r}, step {step.number}: {type(error).__name__}: {error}; the step is "
            f"saved in {folder}"
        ) from error


def steps(
    config: ConfigDict | FrozenConfigDict,
    workdir: Path | str,
    *,
    rewards: Rewards | None = None,
    task: Task | None = None,
    trackers: Sequence[Tracker] = (),
) -> Generator[TrainStep]:
    """The steps that are left of a run, one at a time; arguments and errors as of `train`.

    It may be broken off anywhere, with the last step saved: the same call continues from there, to
    the same result. The folder is this iterator's until it ends, or is closed.
    """
    began = time.monotonic()
    announce_compilations()
    named = name_objects(config, rewards, task)
    ex = reopen(named.config, at_home(workdir), task, named.functions)
    c, run = ex.config, start_run(ex, at_home(workdir), reward_model_sources(ex.config.rewards))
    prompt = (ex.task.heldout if len(ex.task.heldout) else ex.task.train)[0].prompt
    called = [name for name in c.rewards if not name.startswith(PREFIX)]
    names = tuple(dict.fromkeys([*called, "accuracy"]))
    with holding(run), ex.rewarder(names) as rewarder:
        stage = reinforcement(ex, rewarder, run.folder / COLD)
        begun = begin_or_resume(run, stage)
        if begun.done:
            say(f"{run.folder} is finished: all {c.steps} steps are done")
            say(summary(run.folder, prompt=prompt))
            return
        for result in steps_of(run, c, stage, begun, trackers):
            yield TrainStep(
                number=result.number,
                metrics=result.metrics,
                samples=result.samples,
                evaluation=result.evaluation,
                model=live_model(ex, result.state.policy.full, f"{run.folder}, {result.number}"),
            )
        say(f"{run.folder} is done (steps: {c.steps})")
        say(summary(run.folder, time.monotonic() - began, prompt))


def reinforcement(ex: Experiment, rewarder: Rewarder, cold: Path) -> Stage:
    """GRPO as a stage.

    cold  the run folder of its cold start, if it has one
    """
    c = ex.config
    updates = c.steps * ex.algorithm.inner_epochs * ex.algorithm.minibatches
    optimizer, critic = (
        make_optimizer(c.optimizer, updates),
        make_critic(ex.algorithm, c.optimizer, updates),
    )
    options: Any = {"reference": ex.algorithm.beta > 0, "critic": critic}
    source, stream = make_rollouts(ex, rewarder)
    learner = Learner(
        model=ex.model,
        tokenizer=ex.tokenizer,
        mesh=ex.mesh,
        algorithm=ex.algorithm,
        optimizer=optimizer,
        critic=critic,
        temperature=c.rollout.temperature,
        accumulation=c.optimizer.accumulation,
        seed=c.seed,
    )

    def begin() -> TrainState:
        judge = partial(rewarder, names=("accuracy",))
        params = cold_start(ex, judge, cold) if c.sft.steps else load_initial_params(ex.origin)
        key = jax.random.key(c.seed)
        with doing("making the training state"):
            return init_state(ex.model, optimizer, key, ex.mesh, params=params, **options)

    def step(state: TrainState, number: int) -> Step:
        made = rl_step(source, learner, state, number)
        dropped = {"data/dropped_prompts": stream.dropped}
        return Step(made.state, made.metrics | dropped, made.samples[: c.log.samples])

    def held_out(state: TrainState) -> Json:
        params, e = state.policy.full, c.eval
        return evaluate_policy(ex, params, rewarder, e.problems, e.samples).metrics

    return Stage(
        name="rl",
        total=c.steps,
        mesh=ex.mesh,
        like=abstract_state(ex.model, optimizer, ex.mesh, **options),
        begin=begin,
        complete=partial(with_base, ex.origin),
        source=source,
        step=step,
        evaluate=held_out if c.eval.every else None,
    )


class Rollouting(NamedTuple):
    """Where batches come from, and the stream of problems that they are of."""

    source: RolloutSource
    stream: Stream


def make_rollouts(ex: Experiment, rewarder: Rewarder) -> Rollouting:
    """The source of the batches that steps learn from, and its stream of problems."""
    c = ex.config
    stream = Stream(ex.task.train, c.rollout.prompts, c.seed, ex.fits)
    grader = Grader(
        rewarder=rewarder,
        weights=c.rewards.to_dict(),
        reward_models=load_reward_models(list(c.rewards), ex.reader, ex.model.config),
        failures=Failures(c.optimizer.max_bad_steps),
        algorithm=ex.algorithm,
        task=ex.task,
        tokenizer=ex.tokenizer,
    )
    making = Making(
        player=ex.player,
        grader=grader,
        stream=stream,
        sampling=ex.sampling(),
        group=c.rollout.group,
        rounds=ex.algorithm.dynamic_sampling_rounds,
        rng=jax.random.key(c.seed),
        last=c.steps,
    )
    return Rollouting(make_source(c.rollout.source, making), stream)


def make_critic(algorithm: Algorithm, options: FrozenConfigDict, updates: int) -> Critic | None:
    """The critic that the algorithm asks for, with its optimizer; None without one."""
    if algorithm.critic == "none":
        return None
    chosen = ConfigDict(options.to_dict())
    chosen.learning_rate = chosen.critic_learning_rate or chosen.learning_rate
    return Critic(kind=algorithm.critic, optimizer=make_optimizer(chosen, updates))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """What it takes to learn from a batch.

    critic        None without one
    temperature   of the rollouts
    accumulation  micro-batches of a minibatch
    seed          that minibatches are dealt by
    """

    model: Decoder
    tokenizer: TextTokenizer
    mesh: Mesh
    algorithm: Algorithm
    optimizer: Optimizer
    critic: Critic | None
    temperature: float
    accumulation: int
    seed: int


def rl_step(source: RolloutSource, learner: Learner, state: TrainState, number: int) -> Step:
    """Rollouts with their rewards, advantages, and the updates; the state is donated."""
    began = time.monotonic()
    graded = source.next(state.policy.full, number)
    sampled = time.monotonic()
    batch = prepared(learner, state, graded)
    advantages, explained = np.asarray(batch.advantages[..., 0]), explained_variance(batch)
    with doing(f"updating, step {number}", log_after_s=LONG_S):
        state, metrics = learn(learner, state, batch, number)
    now = time.monotonic()
    metrics |= rollout_metrics(graded) | explained
    metrics |= {
        "time/step": now - began,
        "time/rollout": sampled - began,
        "time/reward": graded.waited,
        "time/update": now - sampled,
        "time/tokens_per_second": float(graded.episodes.rollouts.mask.sum()) / (now - began),
    }
    metrics |= flop_utilization(learner, graded, now - began)
    return Step(state, metrics, samples(graded, advantages))


def flop_utilization(learner: Learner, graded: Graded, seconds: float) -> dict[str, float]:
    """The step's FLOPs over what its devices could have done; {} where either is not known."""
    rate = peak_flops(learner.mesh.devices.flat[0].device_kind)
    config, a = learner.model.config, learner.algorithm
    if rate is None or learner.critic is not None or not flops.is_counted(config):
        return {}
    rollouts = graded.episodes.rollouts
    prompts, completions = (np.asarray(x).sum(-1) for x in (rollouts.prompts.mask, rollouts.mask))
    lengths = (prompts, completions)
    sampled = (1 + graded.rounds) * flops.generation_flop(config, lengths)
    before = (a.beta > 0) + needs_old(a)
    done = sampled + flops.update_flop(config, lengths, a.inner_epochs, before)
    return {"time/flop_utilization": done / (seconds * rate * learner.mesh.size)}


def prepared(learner: Learner, state: TrainState, graded: Graded) -> Batch:
    """The batch on the devices, with advantages and what else the algorithm asks for."""
    return prepare(
        state,
        put_batch(graded.episodes.rollouts, learner.mesh),
        put_batch(graded.rewards, learner.mesh),
        put_batch(step_rewards(learner.tokenizer, graded), learner.mesh),
        model=learner.model,
        algorithm=learner.algorithm,
        temperature=learner.temperature,
    )


class Learnt(NamedTuple):
    """The state after every minibatch, and the mean of their metrics."""

    state: TrainState
    metrics: Json


def learn(learner: Learner, state: TrainState, batch: Batch, number: int) -> Learnt:
    """Every minibatch's update, and the mean of their metrics."""
    algorithm = learner.algorithm
    history = []
    for part in minibatches(batch, algorithm, (learner.seed, number)):
        state, metrics = update(
            state,
            part,
            model=learner.model,
            optimizer=learner.optimizer,
            algorithm=algorithm,
            temperature=learner.temperature,
            accumulation=learner.accumulation,
            mesh=learner.mesh,
            critic=learner.critic,
        )
        history.append(metrics)
        if algorithm.kl_stop is not None and float(metrics["approx_kl"]) > algorithm.kl_stop:
            break
    if algorithm.reference_refresh and number % algorithm.reference_refresh == 0:
        moved = refresh_reference(state.reference, state.policy.full, algorithm.reference_mix)
        state = state.replace(reference=moved)
    history = fetch(history)
    mean = {name: np.mean([h[name] for h in history]) for name in history[0]}
    for name in ("skipped_updates", "skipped_in_a_row"):
        mean[name] = history[-1][name]
    return Learnt(state, mean)


def explained_variance(batch: Batch) -> dict[str, float]:
    """1 - var(returns - values) / var(returns) over tokens: 1 for a critic that knows, 0 for one
    that knows the mean; nothing without a critic."""
    if batch.values is None:
        return {}
    arrays = (batch.values, batch.returns, batch.mask)
    values, returns, mask = (np.asarray(fetch(x)) for x in arrays)
    spread = np.var(returns[mask])
    return {"val/explained_variance": 1 - np.var((returns - values)[mask]) / max(spread, 1e-9)}


def rollout_metrics(graded: Graded) -> dict[str, float]:
    """TRL's metrics of a rollout: rewards [P, G], each reward, and lengths in tokens."""
    with warnings.catch_warnings():  # what abstained throughout has no mean: NaN, and no warning
        warnings.simplefilter("ignore", RuntimeWarning)
        return {name: float(value) for name, value in _rollout_metrics(graded).items()}


def _rollout_metrics(graded: Graded) -> Json:
    rewards, rollouts = graded.rewards, graded.episodes.rollouts
    lengths, finished = rollouts.mask.sum(-1), rollouts.finished
    metrics = {
        "reward": np.nanmean(rewards),
        "reward_std": np.nanmean(np.nanstd(rewards, axis=-1, ddof=min(1, rewards.shape[1] - 1))),
        "frac_reward_zero_std": 1.0 - graded.spread.mean(),
        "completions/mean_length": lengths.mean(),
        "completions/min_length": lengths.min(),
        "completions/max_length": lengths.max(),
        "completions/clipped_ratio": 1.0 - finished.mean(),
        "rewards/timeouts": graded.timeouts,
        "dynamic_sampling/rounds": graded.rounds,
    }
    for name, values in graded.parts.items():
        metrics[f"rewards/{name}/mean"] = np.nanmean(values)
        metrics[f"rewards/{name}/std"] = np.nanstd(values)
    if graded.steps is not None:
        judged = [reward for group in graded.steps for one in group for _, reward in one]
        metrics["rewards/steps/mean"] = np.mean(judged)
        metrics["rewards/steps/number"] = len(judged) / rewards.size  # a completion
    measure = graded.episodes.measure
    return metrics | (measure(rollouts) if measure else {})


def samples(graded: Graded, advantages: np.ndarray) -> list[Json]:
    """The first completion of each problem, for people to read; advantages f32[P, G]."""
    return [
        {
            "prompt": str(problem.prompt),
            "completion": group[0],
            "rewards": {name: float(part[i, 0]) for name, part in graded.parts.items()},
            "advantage": float(advantages[i, 0]),
        }
        for i, (problem, group) in enumerate(
            zip(graded.episodes.problems, graded.episodes.completions, strict=True)
        )
    ]
