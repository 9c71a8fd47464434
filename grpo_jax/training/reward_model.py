"""A neural reward model: Bradley-Terry on pairs of completions (2009.01325, eq. 1).

Its network (`rollout.reward_models`) reads whole completions or only final answers, as its task's
option `judged` says. A pair is a group of two: P prompts, G = 2, T completion length.
"""

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ml_collections import FrozenConfigDict

from grpo_jax.console.progress import announce_compilations, say
from grpo_jax.hosts import fetch
from grpo_jax.learning.microbatches import micro_batched
from grpo_jax.learning.optimizer import Optimizer, apply_gradient, make_optimizer
from grpo_jax.learning.state import Critic, TrainState, abstract_state, init_state
from grpo_jax.models.decoder import Decoder
from grpo_jax.rollout.reward_models import Pairs, Reader, encode_pairs, read, rewards, rewards_of
from grpo_jax.runs.run import Run
from grpo_jax.runs.summary import summary
from grpo_jax.statistics import wilson_interval
from grpo_jax.tasks import Problem
from grpo_jax.tasks.loader import Stream
from grpo_jax.training.evaluation import first_problems
from grpo_jax.training.experiment import Experiment
from grpo_jax.training.loop import Stage, Step, begin_or_resume, leaving_on_signals, run_stage
from grpo_jax.training.pretrained import (
    check_and_place,
    load_initial_params,
    pretrained,
    restore_run_params,
)
from grpo_jax.training.starting import holding, reopen, start_run
from grpo_jax.types import Params, Prompts


def pair_loss(
    model: Decoder,
    pairs: int,
    frozen: Params,
    params: Params,
    prompts: Prompts,
    tokens: Int[Array, "P 2 T"],
    mask: Bool[Array, "P 2 T"],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """-log sigmoid(r_chosen - r_rejected), a mean over `pairs`, and its metrics; G = 2.

    Given some of them, the losses of all micro-batches add up to that, as do the metrics.
    """
    found = rewards_of(model, params, prompts, tokens, mask, frozen)
    margin = found[:, 0] - found[:, 1]
    loss = jax.nn.softplus(-margin).sum() / pairs
    metrics = {"loss": loss, "accuracy": (margin > 0).sum() / pairs, "margin": margin.sum() / pairs}
    moments = {"reward_mean": found.sum(), "reward_square": jnp.square(found).sum()}
    return loss, metrics | {name: moment / (2 * pairs) for name, moment in moments.items()}


@partial(
    jax.jit,
    static_argnames=("model", "accumulation"),
    donate_argnames=("state",),
)
def _update(state: TrainState, *batch, model: Decoder, optimizer: Optimizer, accumulation: int):
    loss = partial(pair_loss, model, len(batch[1]), state.policy.frozen)
    gradient, metrics = micro_batched(loss, state.policy.trained, batch, accumulation)
    variance = metrics.pop("reward_square") - jnp.square(metrics["reward_mean"])
    metrics["reward_std"] = jnp.sqrt(jnp.maximum(variance, 0.0))
    moved = apply_gradient(optimizer, state.policy.trained, state.opt_state, gradient)
    policy = state.policy.replace(trained=moved.params)
    state = state.replace(step=state.step + 1, policy=policy, opt_state=moved.opt_state)
    return state, metrics | moved.metrics


def pairs_batch(reader: Reader, problems: Sequence[Problem]) -> Pairs:
    """The pairs of problems of the task `pairs`, G = 2."""
    pairs = [[p.columns["chosen"], p.columns["rejected"]] for p in problems]
    texts = [[text or "" for text in pair] for pair in read(reader, problems, pairs)]
    return encode_pairs(reader, problems, texts)


def train(config: FrozenConfigDict, workdir: Path) -> None:
    """Train the reward model of a resolved config whose task is of pairs, or resume its run.

    rollout.prompts pairs a step, `steps` steps; evaluation is the share of held-out pairs whose
    chosen completion gets more. ValueError for another task.
    """
    began = time.monotonic()
    announce_compilations()
    ex = reopen(config, workdir)
    if not ex.task.pairs:
        raise ValueError(
            f"config.task.name={ex.task.name!r}: a reward model needs a task of pairs (Task.pairs)"
        )
    run = start_run(ex, workdir, sampled=False)
    with holding(run), leaving_on_signals():
        _train(ex, run, began)


def _train(ex: Experiment, run: Run, began: float) -> None:
    c, stage = ex.config, comparing(ex)
    begun = begin_or_resume(run, stage)
    if begun.done:
        say(f"{run.folder} is finished: all {c.steps} steps are done")
        say(summary(run.folder))
        return
    run_stage(run, c, stage, begun)
    say(f"{run.folder} is done (steps: {c.steps})")
    say(summary(run.folder, time.monotonic() - began))


def comparing(ex: Experiment) -> Stage:
    """Learning from pairs, as a stage."""
    c = ex.config
    optimizer = make_optimizer(c.optimizer, c.steps)
    stream = Stream(ex.task.train, c.rollout.prompts, c.seed, ex.fits)
    options: Any = {"reference": False, "critic": Critic(kind="network", optimizer=optimizer)}
    like = abstract_state(ex.model, optimizer, ex.mesh, **options)

    def step(state: TrainState, number: int) -> Step:
        began = time.monotonic()
        batch = pairs_batch(ex.reader, next(stream))
        parts = math.gcd(c.optimizer.accumulation, c.rollout.prompts)
        options = {"model": ex.model, "optimizer": optimizer, "accumulation": parts}
        state, metrics = _update(state, *batch, **options)
        metrics = fetch(metrics)
        metrics["time/step"] = time.monotonic() - began
        metrics["time/tokens_per_second"] = float(batch[2].sum()) / metrics["time/step"]
        return Step(state, metrics, [])

    def complete(state: TrainState) -> TrainState:
        return state.replace(policy=state.policy.replace(base=_base(ex)))

    return Stage(
        name="reward_model",
        total=c.steps,
        mesh=ex.mesh,
        like=_alone(like),
        begin=lambda: _begun(ex, optimizer, options, like),
        complete=complete,
        source=stream,
        step=step,
        evaluate=partial(evaluate, ex) if c.eval.every else None,
    )


def _begun(ex: Experiment, optimizer: Any, options: Any, like: TrainState) -> TrainState:
    """The state to start from: a reward model's in config.start, or a policy's."""
    key = jax.random.key(ex.config.seed)
    start = ex.origin.start
    learnt = None if start is None else restore_run_params(start)
    goes_on = learnt is not None and "value" in learnt
    params = _base(ex) if goes_on else load_initial_params(ex.origin)
    state = _alone(init_state(ex.model, optimizer, key, ex.mesh, params=params, **options))
    if start is None or learnt is None or not goes_on:
        return state
    placed = check_and_place(start, learnt, _alone(like).policy.trained)
    return state.replace(policy=state.policy.replace(trained=placed))


def _alone(state: TrainState) -> TrainState:
    """A state that holds only the critic of another."""
    assert state.critic is not None
    return state.replace(
        policy=state.policy.replace(trained=state.critic.params),
        opt_state=state.critic.opt_state,
        critic=None,
    )


def _base(ex: Experiment) -> Any:
    """What adapters are on, which no checkpoint holds; None without adapters."""
    return pretrained(ex.origin) if ex.model.config.lora.rank else None


def evaluate(ex: Experiment, state: TrainState) -> dict[str, float]:
    """The share of held-out pairs that are ordered as people did, with its Wilson interval."""
    source = ex.task.heldout
    problems = first_problems(source, range(len(source)), ex.config.eval.problems, ex.fits)
    size, hits = min(ex.config.rollout.prompts, len(problems)), 0
    for start in range(0, len(problems), size):
        chunk = problems[start : start + size]
        filled = chunk + [chunk[0]] * (size - len(chunk))
        found = fetch(
            rewards(
                ex.model, state.policy.trained, *pairs_batch(ex.reader, filled), state.policy.frozen
            )
        )
        hits += int((found[:, 0] > found[:, 1])[: len(chunk)].sum())
    low, high = map(float, wilson_interval(hits, len(problems)))
    accuracy = hits / len(problems)
    return {"accuracy": accuracy, "accuracy/low": low, "accuracy/high": high, "n": len(problems)}
