"""One step of GRPO: rollouts with their rewards, advantages, and the updates."""

import dataclasses
import time
import warnings
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from grpo_jax.algorithms import Algorithm
from grpo_jax.console.progress import doing
from grpo_jax.files import Json
from grpo_jax.hosts import fetch
from grpo_jax.learning.microbatches import minibatches
from grpo_jax.learning.optimizer import Optimizer
from grpo_jax.learning.prepare import needs_old, prepare
from grpo_jax.learning.state import Critic, TrainState
from grpo_jax.learning.update import refresh_reference, update
from grpo_jax.models import flops
from grpo_jax.models.decoder import Decoder
from grpo_jax.rollout.grade import Graded, step_rewards
from grpo_jax.rollout.sources import LONG_S, RolloutSource
from grpo_jax.sharding import put_batch
from grpo_jax.tokenizers import TextTokenizer
from grpo_jax.training.loop import Step
from grpo_jax.training.profiling import peak_flops
from grpo_jax.types import Batch


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
    for minibatch in minibatches(batch, algorithm, (learner.seed, number)):
        state, metrics = update(
            state,
            minibatch,
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
            "rewards": {name: float(values[i, 0]) for name, values in graded.parts.items()},
            "advantage": float(advantages[i, 0]),
        }
        for i, (problem, group) in enumerate(
            zip(graded.episodes.problems, graded.episodes.completions, strict=True)
        )
    ]
