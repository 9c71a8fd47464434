"""A neural reward model: Bradley-Terry on pairs of completions (2009.01325, eq. 1).

Its network is a critic's, {"body", "value"}, read after a completion's last token, or after that of
its final answer alone: as its task's option `judged` says. A pair is a group of two: P prompts,
G = 2, T completion length.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grpo_jax import checkpoints
from grpo_jax.checks import UsageError
from grpo_jax.evaluation import first_problems
from grpo_jax.experiment import Experiment, build
from grpo_jax.learner import make_optimizer, micro_batched
from grpo_jax.loop import Step, leaving_on_signals, run_steps
from grpo_jax.models.critic import critic_values
from grpo_jax.models.decoder import Decoder
from grpo_jax.pretrained import beginning, fitting, started
from grpo_jax.rewards.evaluate import Rewarder, Scores
from grpo_jax.rollout.collect import encode_batch
from grpo_jax.runs import load_config, open_run
from grpo_jax.sharding import put_batch, using
from grpo_jax.statistics import wilson_interval
from grpo_jax.tasks import Problem
from grpo_jax.tasks.loader import batches
from grpo_jax.tasks.pairs import JUDGED
from grpo_jax.tokenizers import encode
from grpo_jax.train_state import Critic, abstract_state, init_state
from grpo_jax.types import Prompts, TrainState


def rewards_of(
    model: Decoder, params: Any, prompts: Prompts, tokens: jax.Array, mask: jax.Array
) -> jax.Array:
    """The reward of whole completions, f32[P, G]; tokens i32, mask bool [P, G, T], right-padded."""
    longer = jnp.pad(tokens, ((0, 0), (0, 0), (0, 1)))  # value t is read before token t
    values = critic_values(model, params, None, prompts, longer, None)
    return jnp.take_along_axis(values, mask.sum(-1)[..., None], -1)[..., 0]


def pair_loss(model: Decoder, pairs: int, params: Any, prompts: Prompts, tokens, mask):
    """-log sigmoid(r_chosen - r_rejected), a mean over `pairs`, and its metrics; G = 2.

    Given a part of them, sums to that over the parts, as do the metrics.
    """
    rewards = rewards_of(model, params, prompts, tokens, mask)
    margin = rewards[:, 0] - rewards[:, 1]
    loss = jax.nn.softplus(-margin).sum() / pairs
    metrics = {"loss": loss, "accuracy": (margin > 0).sum() / pairs, "margin": margin.sum() / pairs}
    moments = {"reward_mean": rewards.sum(), "reward_square": jnp.square(rewards).sum()}
    return loss, metrics | {name: moment / (2 * pairs) for name, moment in moments.items()}


@partial(
    jax.jit,
    static_argnames=("model", "optimizer", "accumulation"),
    donate_argnames=("state",),
)
def _update(state: TrainState, *batch, model: Decoder, optimizer, accumulation: int):
    loss = partial(pair_loss, model, len(batch[1]))
    gradient, metrics = micro_batched(loss, state.params, batch, accumulation)
    variance = metrics.pop("reward_square") - jnp.square(metrics["reward_mean"])
    metrics["reward_std"] = jnp.sqrt(jnp.maximum(variance, 0.0))
    steps, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, steps)
    metrics["grad_norm"] = optax.tree.norm(gradient)
    metrics["learning_rate"] = optax.tree_utils.tree_get(opt_state, "hyperparams")["learning_rate"]
    metrics["skipped_in_a_row"] = opt_state.notfinite_count
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


_rewards = jax.jit(rewards_of, static_argnums=0)


def completions_batch(
    ex: Experiment, problems: Sequence[Any], completions: Sequence[Sequence[str]]
):
    """Prompts, tokens i32[P, G, T] and mask of texts [P][G], each closed by the stop token.

    A completion beyond rollout.max_tokens is cut there.
    """
    c, T = ex.config, ex.config.rollout.max_tokens
    tokens = np.zeros((len(problems), len(completions[0]), T), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for p, group in enumerate(completions):
        for g, text in enumerate(group):
            ids = [*encode(ex.tokenizer, text), ex.tokenizer.stop[0]][:T]
            tokens[p, g, : len(ids)], mask[p, g, : len(ids)] = ids, True
    prompts = encode_batch(ex.tokenizer, problems, c.prompt_length, c.rollout.prompt_bucket)
    return put_batch((prompts, tokens, mask), ex.mesh)


def pairs_batch(ex: Experiment, problems: Sequence[Problem]):
    """The pairs of problems of the task `pairs`, G = 2."""
    pairs = [[p.columns["chosen"], p.columns["rejected"]] for p in problems]
    return completions_batch(ex, problems, read(ex, pairs))


def read(ex: Experiment, completions: Sequence[Sequence[str]]) -> list[list[Any]]:
    """What the model reads of completions [P][G]: text, or None where there is nothing to judge."""
    part = JUDGED[ex.config.task.get("judged", "whole")]
    return [[part(text) for text in group] for group in completions]


def train(config: Any, workdir: Path) -> None:
    """Train, or go on with, the reward model of a resolved config whose task is `pairs`.

    rollout.prompts pairs a step, `steps` steps; evaluation is the share of held-out pairs whose
    chosen completion gets more. ValueError for another task.
    """
    ex = build(config)
    if ex.task.name != "pairs":
        raise ValueError(f"config.task.name={ex.task.name!r}: a reward model needs 'pairs'")
    run = open_run(workdir, config)
    try:
        with leaving_on_signals(), using(ex.mesh):
            _train(ex, run)
    finally:
        run.close()


def _train(ex: Experiment, run: Any) -> None:
    c = ex.config
    optimizer = make_optimizer(c.optimizer, c.steps)
    data = batches(ex.task.train, c.rollout.prompts, c.seed, ex.fits)
    critic = Critic("network", optimizer)
    options: Any = {"reference": False, "critic": critic}
    like = abstract_state(ex.model, optimizer, ex.mesh, **options)
    restored = checkpoints.restore_latest(run.checkpoints, _alone(like))
    if restored is not None:
        state, position = restored
        data.set_state(position["data"])
        start = position["step"]
    else:
        state, start = _begun(ex, optimizer, options, like), None
    if start == c.steps:
        print(f"{run.folder} is finished: all {c.steps} steps are done")
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

    now = lambda: {"step": number, "data": data.get_state()}  # noqa: E731
    held_out = partial(evaluate, ex) if c.eval.every else None
    run_steps(run, c, (start, state), c.steps, step, now, held_out)


def _begun(ex: Experiment, optimizer: Any, options: Any, like: TrainState) -> TrainState:
    """The state to start from: a reward model's in config.start, or a policy's."""
    key = jax.random.key(ex.config.seed)
    goes_on = ex.config.start != "" and "value" in started(ex)
    params = None if goes_on else beginning(ex)
    state = _alone(init_state(ex.model, optimizer, key, ex.mesh, params=params, **options))
    if not goes_on:
        return state
    return state.replace(params=fitting(ex, started(ex), _alone(like).params))


def _alone(state: TrainState) -> TrainState:
    """The critic of a state as a state of its own."""
    assert state.critic is not None
    params, opt_state = state.critic.params, state.critic.opt_state
    return TrainState(state.step, params, opt_state, None, state.rng)


def evaluate(ex: Experiment, state: TrainState) -> dict[str, float]:
    """The share of held-out pairs that are ordered as people did, with its Wilson interval."""
    source = ex.task.heldout
    problems = first_problems(ex, source, range(len(source)), ex.config.eval.problems)
    size, hits = min(ex.config.rollout.prompts, len(problems)), 0
    for start in range(0, len(problems), size):
        part = problems[start : start + size]
        filled = part + [part[0]] * (size - len(part))
        rewards = jax.device_get(_rewards(ex.model, state.params, *pairs_batch(ex, filled)))
        hits += int((rewards[:, 0] > rewards[:, 1])[: len(part)].sum())
    low, high = map(float, wilson_interval(hits, len(problems)))
    accuracy = hits / len(problems)
    return {"accuracy": accuracy, "accuracy/low": low, "accuracy/high": high, "n": len(problems)}


PREFIX = "reward_model:"  # of a reward's name; the run's folder follows
Judge = Callable[[Sequence[Any], Sequence[Sequence[str]]], np.ndarray]


def load_judge(folder: Path, mesh: Mesh) -> Judge:
    """The reward model of a run's folder, as a function of problems [P] and texts [P][G] that
    returns rewards f32[P, G]. UsageError where the folder holds none.

    It reads of completions what it was trained on; `lowest` marks those that have no such part.
    """
    params, _ = checkpoints.restore_params(folder / "checkpoints")
    if "value" not in params:
        raise UsageError(f"{PREFIX}{folder}: that run's model writes and does not score")
    ex = dataclasses.replace(build(load_config(folder)), mesh=mesh)
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))

    def judge(problems, completions):
        texts = read(ex, completions)
        batch = completions_batch(ex, problems, [[text or "" for text in g] for g in texts])
        judged = np.array([[text is not None for text in group] for group in texts])
        return lowest(np.asarray(_rewards(ex.model, params, *batch)), judged)

    return judge


def lowest(rewards: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Rewards f32[P, G], where bool[P, G] is False one below the least judged one of the group.

    So nothing is gained by leaving out what is judged, whatever the scale of the rewards. A group
    without one takes the batch's least; NaN, which abstains, where nothing at all was judged.
    """
    known = np.where(judged, rewards, np.inf)
    least = known.min(-1, keepdims=True)
    below = np.where(np.isinf(least), known.min(), least) - 1
    return np.where(judged, rewards, np.where(np.isinf(below), np.nan, below)).astype(np.float32)


def with_judges(
    rewarder: Rewarder, names: Sequence[str], mesh: Mesh
) -> Callable[..., Callable[[], Scores]]:
    """`rewarder.submit`, with what the reward models among `names` say added to the scores.

    They score on the accelerator, in this process, once the scores are asked for, while the others
    are at work in theirs.
    """
    chosen = [name for name in names if name.startswith(PREFIX)]
    judges = {name: load_judge(Path(name.removeprefix(PREFIX)), mesh) for name in chosen}

    def submit(problems, completions) -> Callable[[], Scores]:
        scores = rewarder.submit(problems, completions)

        def wait() -> Scores:
            judged = {name: judge(problems, completions) for name, judge in judges.items()}
            others = scores()
            return others._replace(parts=others.parts | judged)

        return wait

    return submit
