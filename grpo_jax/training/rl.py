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

from grpo_jax import algorithms
from grpo_jax.console.progress import announce_compilations, doing, say
from grpo_jax.engines.lockstep import sample
from grpo_jax.engines.speculative import speculation_metrics
from grpo_jax.hosts import fetch
from grpo_jax.learning.microbatches import minibatches
from grpo_jax.learning.optimizer import Optimizer, make_optimizer
from grpo_jax.learning.prepare import prepare
from grpo_jax.learning.state import Critic, TrainState, abstract_state, init_state
from grpo_jax.learning.update import refresh_reference, update
from grpo_jax.rewards.call import refuse_large
from grpo_jax.rewards.evaluate import Rewarder, Scores, ending, scored_by
from grpo_jax.rollout.collect import Collected, collect, encode_batch, texts
from grpo_jax.rollout.steps import grade_steps, step_rewards
from grpo_jax.runs.run import Run
from grpo_jax.runs.summary import COLD, summary
from grpo_jax.sharding import put_batch, using
from grpo_jax.tasks.loader import Stream
from grpo_jax.tokenizers import prefill
from grpo_jax.training.evaluation import evaluate
from grpo_jax.training.experiment import Experiment
from grpo_jax.training.judges import PREFIX, judge_sources, with_judges
from grpo_jax.training.loop import Stage, Step, begin_or_resume, leaving_on_signals, run_stage
from grpo_jax.training.pretrained import load_initial_params, with_base
from grpo_jax.training.sft import cold_start
from grpo_jax.training.starting import holding, reopen, start_run
from grpo_jax.types import Batch, Prompts, Rollouts

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
    c, stage = ex.config, reinforcement(ex, rewarder, run.folder / COLD)
    begun = begin_or_resume(run, stage)
    prompt = (ex.task.heldout if len(ex.task.heldout) else ex.task.train)[0].prompt
    if begun.done:
        say(f"{run.folder} is finished: all {c.steps} steps are done")
        say(summary(run.folder, prompt=prompt))
        return
    run_stage(run, c, stage, begun)
    say(f"{run.folder} is done (steps: {c.steps})")
    say(summary(run.folder, time.monotonic() - began, prompt))


def reinforcement(ex: Experiment, rewarder: Rewarder, cold: Path) -> Stage:
    """GRPO as a stage.

    cold  the run folder of its cold start, if it has one
    """
    c = ex.config
    problems = Problems(ex)
    judged = with_judges(rewarder, list(c.rewards), ex)
    judged = ending(judged, c.optimizer.max_bad_steps, lambda: problems.step)
    updates = c.steps * ex.algorithm.inner_epochs * ex.algorithm.minibatches
    optimizer, critic = make_optimizer(c.optimizer, updates), make_critic(ex, updates)
    options: Any = {"reference": ex.algorithm.beta > 0, "critic": critic}
    like = abstract_state(ex.model, optimizer, ex.mesh, **options)

    def begin() -> TrainState:
        judge = partial(rewarder, names=("accuracy",))
        params = cold_start(ex, judge, cold) if c.sft.steps else load_initial_params(ex)
        key = jax.random.key(c.seed)
        with doing("making the training state"):
            return init_state(ex.model, optimizer, key, ex.mesh, params=params, **options)

    def held_out(state: TrainState) -> dict[str, Any]:
        return evaluate(ex, state.policy.full, rewarder, c.eval.problems, c.eval.samples)

    return Stage(
        name="rl",
        total=c.steps,
        like=like.replace(pending=_abstract_pending(ex, like) if c.rollout.overlap else None),
        begin=begin,
        complete=partial(with_base, ex),
        source=problems,
        step=partial(iteration, ex, optimizer, critic, judged, problems),
        evaluate=held_out if c.eval.every else None,
    )


def make_critic(ex: Experiment, updates: int) -> Critic | None:
    """The critic that the algorithm asks for, with its optimizer; None without one."""
    if ex.algorithm.critic == "none":
        return None
    chosen = ConfigDict(ex.config.optimizer.to_dict())
    chosen.learning_rate = chosen.critic_learning_rate or chosen.learning_rate
    return Critic(kind=ex.algorithm.critic, optimizer=make_optimizer(chosen, updates))


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
        rollouts = fetch(state.pending).replace(prompts=_prompts(ex, drawn))
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


class Problems(Stream):
    """The stream of training problems, P at a time, which knows the step that is being made."""

    def __init__(self, ex: Experiment):
        """Problems of the experiment's task, over-long prompts dropped or refused."""
        c = ex.config
        super().__init__(ex.task.train, c.rollout.prompts, c.seed, ex.fits)
        self.step = 0


def _prompts(ex: Experiment, problems) -> Prompts:
    c = ex.config
    return encode_batch(ex.tokenizer, problems, c.prompt_length, c.rollout.prompt_bucket)


def _sample(ex: Experiment, state: TrainState, problems, number: int, extra: int = 0) -> Rollouts:
    key = jax.random.fold_in(jax.random.fold_in(state.rng, number), extra)
    with doing(f"sampling for step {number}", log_after_s=LONG_S):
        rollouts = sample(
            ex.model,
            state.policy.full,
            put_batch(_prompts(ex, problems), ex.mesh),
            key,
            sampling=ex.sampling(),
            group=ex.config.rollout.group,
            stops=ex.stops,
        )
        return fetch(rollouts)


def _abstract_pending(ex: Experiment, state: TrainState) -> Rollouts:
    """The shapes of rollouts that wait, to restore a checkpoint into."""
    shape, place = (ex.config.rollout.prompts, 1), NamedSharding(ex.mesh, PartitionSpec())
    tokens: Any = jax.ShapeDtypeStruct(shape, jnp.int32)
    mask: Any = jax.ShapeDtypeStruct(shape, bool)
    prompts = Prompts(tokens=tokens, mask=mask)
    draw = partial(sample, ex.model, sampling=ex.sampling(), group=ex.config.rollout.group)
    rollouts = jax.eval_shape(draw, state.policy.full, prompts, state.rng)
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
        steps = grade_steps(ex.task, problems, completions, held)
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
        moved = refresh_reference(state.reference, state.policy.full, algorithm.reference_mix)
        state = state.replace(reference=moved)
    history = fetch(history)
    metrics = {name: np.mean([h[name] for h in history]) for name in history[0]}
    for name in ("skipped_updates", "skipped_in_a_row"):
        metrics[name] = history[-1][name]
    return state, metrics


def explained_variance(batch: Batch) -> dict[str, float]:
    """1 - var(returns - values) / var(returns) over tokens: 1 for a critic that knows, 0 for one
    that knows the mean; nothing without a critic."""
    if batch.values is None:
        return {}
    arrays = (batch.values, batch.returns, batch.mask)
    values, returns, mask = (np.asarray(fetch(x)) for x in arrays)
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
