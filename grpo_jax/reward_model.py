"""A neural reward model: Bradley-Terry on pairs of completions (2009.01325, eq. 1).

Its network (`judges`) reads whole completions, or final answers alone: as its task's option
`judged` says. A pair is a group of two: P prompts, G = 2, T completion length.
"""

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from grpo_jax import checkpoints
from grpo_jax.evaluation import first_problems
from grpo_jax.experiment import Experiment
from grpo_jax.judges import completions_batch, read, rewards, rewards_of
from grpo_jax.learner import make_optimizer, micro_batched
from grpo_jax.loop import Step, leaving_on_signals, run_steps
from grpo_jax.models.decoder import Decoder
from grpo_jax.optimizer import Optimizer
from grpo_jax.pretrained import beginning, fitting, pretrained, started
from grpo_jax.progress import announce_compilations, say
from grpo_jax.sharding import using
from grpo_jax.starting import check_begun, holding, reopen, start_run
from grpo_jax.statistics import wilson_interval
from grpo_jax.summary import summary
from grpo_jax.tasks import Problem
from grpo_jax.tasks.loader import Counted, batches
from grpo_jax.train_state import Critic, abstract_state, init_state
from grpo_jax.types import Prompts, TrainState


def pair_loss(model: Decoder, pairs: int, frozen, params: Any, prompts: Prompts, tokens, mask):
    """-log sigmoid(r_chosen - r_rejected), a mean over `pairs`, and its metrics; G = 2.

    Given a part of them, sums to that over the parts, as do the metrics.
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
    loss = partial(pair_loss, model, len(batch[1]), state.frozen)
    gradient, metrics = micro_batched(loss, state.params, batch, accumulation)
    variance = metrics.pop("reward_square") - jnp.square(metrics["reward_mean"])
    metrics["reward_std"] = jnp.sqrt(jnp.maximum(variance, 0.0))
    steps, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, steps)
    metrics["grad_norm"] = optax.tree.norm(gradient)
    metrics["learning_rate"] = optax.tree_utils.tree_get(opt_state, "hyperparams")["learning_rate"]
    metrics["skipped_in_a_row"] = opt_state.notfinite_count
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


def pairs_batch(ex: Experiment, problems: Sequence[Problem]):
    """The pairs of problems of the task `pairs`, G = 2."""
    pairs = [[p.columns["chosen"], p.columns["rejected"]] for p in problems]
    return completions_batch(ex, problems, read(ex, problems, pairs))


def train(config: Any, workdir: Path) -> None:
    """Train, or go on with, the reward model of a resolved config whose task is `pairs`.

    rollout.prompts pairs a step, `steps` steps; evaluation is the share of held-out pairs whose
    chosen completion gets more. ValueError for another task.
    """
    began = time.monotonic()
    announce_compilations()
    ex = reopen(config, workdir)
    if ex.task.name != "pairs":
        raise ValueError(f"config.task.name={ex.task.name!r}: a reward model needs 'pairs'")
    run = start_run(ex, workdir, sampled=False)
    with holding(run), leaving_on_signals(), using(ex.mesh):
        _train(ex, run, began)


def _train(ex: Experiment, run: Any, began: float) -> None:
    c = ex.config
    optimizer = make_optimizer(c.optimizer, c.steps)
    keep = Counted(ex.fits)
    data = batches(ex.task.train, c.rollout.prompts, c.seed, keep)
    critic = Critic("network", optimizer)
    options: Any = {"reference": False, "critic": critic}
    like = abstract_state(ex.model, optimizer, ex.mesh, **options)
    restored = checkpoints.restore_latest(run.checkpoints, _alone(like).replace(base=None))
    if restored is not None:
        state, position = restored
        state = state.replace(base=_base(ex))
        data.set_state(position["data"])
        done, keep.dropped = position["step"], position["dropped"]
    else:
        check_begun(run)
        state, done = _begun(ex, optimizer, options, like), None
    if done == c.steps:
        say(f"{run.folder} is finished: all {c.steps} steps are done")
        say(summary(run.folder))
        return
    number = 0

    def step(state: TrainState, at: int) -> Step:
        nonlocal number
        number, began = at, time.monotonic()
        batch = pairs_batch(ex, next(data))
        parts = math.gcd(c.optimizer.accumulation, c.rollout.prompts)
        options = {"model": ex.model, "optimizer": optimizer, "accumulation": parts}
        state, metrics = _update(state, *batch, **options)
        metrics = jax.device_get(metrics)
        metrics["time/step"] = time.monotonic() - began
        metrics["time/tokens_per_second"] = float(batch[2].sum()) / metrics["time/step"]
        return Step(state, metrics, [])

    def now() -> dict[str, Any]:
        at = {"step": number, "data": data.get_state(), "dropped": keep.dropped}
        return at | run.kept()

    held_out = partial(evaluate, ex) if c.eval.every else None
    run_steps(run, c, (done, state), c.steps, step, now, held_out)
    say(f"{run.folder} is done (steps: {c.steps})")
    say(summary(run.folder, time.monotonic() - began))


def _begun(ex: Experiment, optimizer: Any, options: Any, like: TrainState) -> TrainState:
    """The state to start from: a reward model's in config.start, or a policy's."""
    key = jax.random.key(ex.config.seed)
    goes_on = ex.config.start != "" and "value" in started(ex)
    params = _base(ex) if goes_on else beginning(ex)
    state = _alone(init_state(ex.model, optimizer, key, ex.mesh, params=params, **options))
    if not goes_on:
        return state
    return state.replace(params=fitting(ex, started(ex), _alone(like).params))


def _alone(state: TrainState) -> TrainState:
    """The critic of a state as a state of its own."""
    assert state.critic is not None
    params, opt_state = state.critic.params, state.critic.opt_state
    return TrainState(state.step, params, opt_state, None, state.rng, state.router, state.base)


def _base(ex: Experiment) -> Any:
    """What adapters are on, which no checkpoint holds; None without adapters."""
    return pretrained(ex) if ex.model.config.lora.rank else None


def evaluate(ex: Experiment, state: TrainState) -> dict[str, float]:
    """The share of held-out pairs that are ordered as people did, with its Wilson interval."""
    source = ex.task.heldout
    problems = first_problems(ex, source, range(len(source)), ex.config.eval.problems)
    size, hits = min(ex.config.rollout.prompts, len(problems)), 0
    for start in range(0, len(problems), size):
        part = problems[start : start + size]
        filled = part + [part[0]] * (size - len(part))
        found = jax.device_get(
            rewards(ex.model, state.params, *pairs_batch(ex, filled), state.frozen)
        )
        hits += int((found[:, 0] > found[:, 1])[: len(part)].sum())
    low, high = map(float, wilson_interval(hits, len(problems)))
    accuracy = hits / len(problems)
    return {"accuracy": accuracy, "accuracy/low": low, "accuracy/high": high, "n": len(problems)}
