"""Reinforcement learning from verifiable rewards: Algorithm 1 of DeepSeekMath (2402.03300)."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from grpo_jax.algorithms import Algorithm
from grpo_jax.console.progress import announce_compilations, doing, say
from grpo_jax.errors import UsageError, one_line
from grpo_jax.files import Json, at_home
from grpo_jax.learning.optimizer import make_optimizer
from grpo_jax.learning.state import Critic, TrainState, abstract_state, init_state
from grpo_jax.rewards.evaluate import Failures, Rewarder
from grpo_jax.rollout.grade import Grader
from grpo_jax.rollout.sources import Making, RolloutSource, make_source
from grpo_jax.runs.summary import COLD, summary
from grpo_jax.runs.trackers.base import Tracker
from grpo_jax.tasks import Task
from grpo_jax.tasks.loader import Stream
from grpo_jax.training.evaluation import evaluate_policy
from grpo_jax.training.experiment import Experiment
from grpo_jax.training.load_reward_model import PREFIX, load_reward_models, reward_model_sources
from grpo_jax.training.loading import Model, SavedRun, live_model, load_run
from grpo_jax.training.loop import Stage, Step, begin_or_resume, leaving_on_signals, steps_of
from grpo_jax.training.objects import Rewards, name_objects
from grpo_jax.training.pretrained import load_initial_params, with_base
from grpo_jax.training.rl_step import Learner, rl_step
from grpo_jax.training.sft import cold_start
from grpo_jax.training.starting import holding, reopen, start_run


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
    model: Model = dataclasses.field(repr=False)


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
               config.rewards has them; each weighs what config.rewards says, or 1. A resumed run
               knows a function by its name only
    task       in place of config.task
    trackers   record the run besides those in config.log.trackers, which record the cold start
               too, if there is one
    callbacks  called with each step's `TrainStep`; where one raises, the run ends with that step
               saved, and UsageError

    The cold start, if any, is a separate run in workdir/cold_start. A finished run says so.
    UsageError for what cannot be, naming the field.
    """
    for callback in callbacks:
        if not callable(callback):
            raise UsageError(f"callbacks: {callback!r}; valid: functions of a TrainStep")
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
            f"callback {name!r}, step {step.number}: {type(error).__name__}: {one_line(error)}; "
            f"the step is saved in {folder}"
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
    optimizer = make_optimizer(c.optimizer, updates)
    critic = make_critic(ex.algorithm, c.optimizer, updates)
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
