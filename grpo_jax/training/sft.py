"""Supervised fine-tuning on worked solutions: the cold start, by the learner's own update."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from ml_collections import FrozenConfigDict

from grpo_jax.algorithms import Algorithm
from grpo_jax.console.progress import doing, say
from grpo_jax.errors import UsageError
from grpo_jax.learning.optimizer import make_optimizer
from grpo_jax.learning.state import TrainState, abstract_state, init_state
from grpo_jax.learning.update import update
from grpo_jax.rewards.evaluate import Scores
from grpo_jax.rollout.play import encode_batch
from grpo_jax.runs.run import read_lines
from grpo_jax.runs.summary import ending
from grpo_jax.sharding import put_batch
from grpo_jax.tasks import Problem
from grpo_jax.tasks.loader import Stream
from grpo_jax.tokenizers import encode
from grpo_jax.training.evaluation import attempts, first_problems
from grpo_jax.training.experiment import Experiment, too_long
from grpo_jax.training.loop import Stage, Step, begin_or_resume, run_stage
from grpo_jax.training.pretrained import load_initial_params, with_base
from grpo_jax.training.starting import begin_run, holding
from grpo_jax.types import Batch, Params, on_host

# -A logp with A = 1, averaged over tokens, is the negative log-likelihood.
LIKELIHOOD = Algorithm(surrogate="reinforce", aggregation="token_mean", beta=0.0)


class Solved:
    """A source of problems with their worked solutions, the first `size` of another source."""

    def __init__(self, source, size: int):
        """Take `size` problems of `source`; 0 takes all."""
        self.source, self.size = source, min(size or len(source), len(source))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Problem:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return self.source[index]


def supervised_batch(ex: Experiment, problems: list[Problem]) -> Batch:
    """Problems and their worked solutions as a Batch of G = 1; ValueError for one too long."""
    c, T, solve = ex.config, ex.config.rollout.max_tokens, ex.task.solve
    if solve is None:
        raise ValueError(f"config.sft.steps={c.sft.steps}: task {ex.task.name!r} has no solutions")
    tokens = np.zeros((len(problems), 1, T), np.int32)
    mask = np.zeros((len(problems), 1, T), bool)
    for i, problem in enumerate(problems):
        ids = solution_ids(ex, problem)
        if len(ids) > T:
            raise ValueError(
                f"the worked solution of {problem.prompt!r} has {len(ids)} tokens; "
                f"rollout.max_tokens={T} must hold it"
            )
        tokens[i, 0, : len(ids)], mask[i, 0, : len(ids)] = ids, True
    prompts = encode_batch(ex.tokenizer, problems, c.prompt_length, c.rollout.prompt_bucket)
    return Batch(  # on the host still
        prompts=prompts,
        tokens=on_host(tokens),
        mask=on_host(mask),
        advantages=on_host(np.ones((len(problems), 1, 1), np.float32)),
        logp_rollout=on_host(np.zeros(tokens.shape, np.float32)),
    )


def solution_ids(ex: Experiment, problem: Problem) -> list[int]:
    """The tokens of `ex.solution(problem)`, with a stop token."""
    return [*encode(ex.tokenizer, ex.solution(problem)), ex.tokenizer.stop[0]]


def fits_solved(ex: Experiment, problem: Problem) -> bool:
    """Whether prompt and solution are to be used, as `ex.fits`: not where they are too long and
    such are dropped; UsageError where they are refused instead."""
    if ex.task.solve is None:
        return True
    if not ex.fits(problem):
        return False
    tokens = len(solution_ids(ex, problem))
    if tokens <= ex.config.rollout.max_tokens:
        return True
    if ex.config.overlong_prompts == "refuse":
        raise UsageError(too_long(ex.config, problem, "worked solution", tokens))
    return False


def optimizer_config(config: FrozenConfigDict) -> ml_collections.ConfigDict:
    """The optimizer of the cold start: `optimizer` with the learning rate and warm-up of `sft`."""
    chosen = ml_collections.ConfigDict(config.optimizer.to_dict())
    chosen.update(
        learning_rate=config.sft.learning_rate,
        warmup_steps=config.sft.warmup_steps,
        schedule="constant",
    )
    return chosen


def cold_start(ex: Experiment, rewarder: Callable[..., Scores], workdir: Path) -> Params:
    """Fine-tune the model on worked solutions in the run folder `workdir`; return its params.

    Ends after sft.steps, or once greedy accuracy on training problems reaches sft.stop_accuracy.
    Resumes where it was cut off. ValueError where the task has no worked solutions.
    """
    run = begin_run(ex, workdir, ex.sources())
    with holding(run):
        stage = fine_tuning(ex, rewarder)
        begun = begin_or_resume(run, stage)
        if begun.done:
            return begun.state.policy.full
        say(f"cold start on worked solutions (sft.steps={stage.total})")
        state = run_stage(run, ex.config, stage, begun)
        say(f"the cold start is done after {ending(read_lines(run.metrics)[-1])}")
        say(f"its curves: {run.folder / 'curves.png'}")
        return state.policy.full


def fine_tuning(ex: Experiment, rewarder: Callable[..., Scores]) -> Stage:
    """The cold start as a stage."""
    c = ex.config
    optimizer = make_optimizer(optimizer_config(c), c.sft.steps)
    source = Solved(ex.task.train, c.sft.examples)
    stream = Stream(source, c.sft.batch, c.seed, partial(fits_solved, ex))

    def begin() -> TrainState:
        params, key = load_initial_params(ex.origin), jax.random.key(c.seed)
        with doing("making the training state"):
            return init_state(ex.model, optimizer, key, ex.mesh, reference=False, params=params)

    def step(state: TrainState, number: int) -> Step:
        began = time.monotonic()
        batch = supervised_batch(ex, next(stream))
        state, metrics = _learn(ex, optimizer, state, batch)
        metrics["time/step"] = time.monotonic() - began
        metrics["time/tokens_per_second"] = batch.mask.sum() / metrics["time/step"]
        last = number == c.sft.steps
        if c.sft.stop_accuracy and (number % c.sft.check_every == 0 or last):
            with doing(f"checking accuracy after step {number}", log_after_s=2.0):
                metrics["accuracy"] = _train_accuracy(ex, state.policy.full, rewarder)
            last = last or metrics["accuracy"] >= c.sft.stop_accuracy
        return Step(state, metrics, [], last=last)

    return Stage(
        name="sft",
        total=c.sft.steps,
        mesh=ex.mesh,
        like=abstract_state(ex.model, optimizer, ex.mesh, reference=False),
        begin=begin,
        complete=partial(with_base, ex.origin),
        source=stream,
        step=step,
    )


def _learn(ex: Experiment, optimizer, state: TrainState, batch: Batch):
    """One update on a batch that is on the host, and the metrics that mean something here."""
    batch = put_batch(batch, ex.mesh)
    options = {"model": ex.model, "optimizer": optimizer, "mesh": ex.mesh, "joint_mtp": True}
    parts = math.gcd(ex.config.optimizer.accumulation, len(batch.tokens))
    state, metrics = update(state, batch, algorithm=LIKELIHOOD, accumulation=parts, **options)
    kept = ("loss", "entropy", "grad_norm", "learning_rate", "skipped_in_a_row")
    return state, {k: float(metrics[k]) for k in kept}


def _train_accuracy(ex: Experiment, params: Any, rewarder: Callable[..., Scores]) -> float:
    """Greedy accuracy on the last training problems, which a small cold start has not seen."""
    source = ex.task.train
    order, n = reversed(range(len(source))), ex.config.sft.check_problems
    problems = first_problems(source, order, n, ex.fits, "training", "sft.check_problems")
    greedy = attempts(params, rewarder, problems, 1, ex.answering(0.0))
    judged = greedy.right[greedy.judged]
    return float(judged.mean()) if judged.size else math.nan
