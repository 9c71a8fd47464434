"""Grading, in one place: rewards, reward models and steps of process supervision -> rewards [P, G].

P prompts, G group.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from grpo_jax import algorithms
from grpo_jax.algorithms import Algorithm
from grpo_jax.rewards.call import refuse_large
from grpo_jax.rewards.evaluate import Failures, Rewarder, Scores, scored_by
from grpo_jax.rollout.play import Episodes
from grpo_jax.rollout.reward_models import Scorer
from grpo_jax.rollout.steps import grade_steps
from grpo_jax.tasks import Steps, Task
from grpo_jax.tokenizers import TextTokenizer, bucket, end_tokens, prefill
from grpo_jax.types import StepRewards, on_host

MULTIPLE = 8  # of K, so that nearby numbers of steps share one compiled program
SPREAD = 1e-6  # below it a group's rewards are equal, and teach nothing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graded:
    """Episodes with their rewards.

    parts     the rewards by name, NaN where one abstains
    timeouts  how many (reward, completion) pairs hung or killed their process
    steps     [P][G], the steps of each solution as its task judges them, or None
    rounds    of dynamic sampling
    waited    seconds that its step waited for the grades
    """

    episodes: Episodes
    rewards: Float[np.ndarray, "P G"]
    parts: dict[str, Float[np.ndarray, "P G"]]
    timeouts: int
    steps: list[list[Steps]] | None = None
    rounds: int = 0
    waited: float = 0.0

    @property
    def spread(self) -> Bool[np.ndarray, " P"]:
        """Whether a group's rewards differ, or those of the steps of its solutions."""
        return has_spread(self.rewards, self.steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grader:
    """What it takes to grade episodes.

    weights        of each reward, by name
    reward_models  those among them that are models, by name; they score on the accelerator
    failures       of rewards, step by step
    """

    rewarder: Rewarder
    weights: Mapping[str, float]
    reward_models: Mapping[str, Scorer]
    failures: Failures
    algorithm: Algorithm
    task: Task
    tokenizer: TextTokenizer


def grade(grader: Grader, episodes: Episodes, number: int) -> Callable[[], Graded]:
    """Begin to grade the episodes of a step, and return the function that waits for the grades.

    Reward functions run in their processes meanwhile; reward models score once it is called.
    RewardError where a reward has failed for every completion of too many steps in a row.
    """
    problems, completions = episodes.problems, episodes.completions
    submitted = grader.rewarder.submit(problems, completions)

    def wait() -> Graded:
        scored = {
            name: model(problems, completions) for name, model in grader.reward_models.items()
        }
        scores = submitted()
        grader.failures.note(scores, number)
        parts = scores.parts | scored
        steps = None
        if algorithms.needs_steps(grader.algorithm):
            held = partial(prefill, grader.tokenizer)
            steps = grade_steps(grader.task, problems, completions, held)
        return Graded(
            episodes=episodes,
            rewards=_combined(grader, episodes, parts, scores),
            parts=parts,
            timeouts=scores.timeouts,
            steps=steps,
        )

    return wait


def _combined(
    grader: Grader, episodes: Episodes, parts: Mapping[str, np.ndarray], scores: Scores
) -> Float[np.ndarray, "P G"]:
    """The weighed rewards; a completion that a reward hung or died on abstains."""
    algorithm, problems = grader.algorithm, episodes.problems
    asked = {name: [[scored_by(p, name)] for p in problems] for name in grader.weights}
    chosen = np.stack([np.where(asked[name], parts[name], np.nan) for name in grader.weights])
    combined = algorithms.combine_rewards(
        algorithm,
        jnp.where(scores.lost, jnp.nan, chosen),
        jnp.array(list(grader.weights.values()), jnp.float32),
    )
    rewards = np.asarray(combined)
    squared = chosen if algorithms.squares_parts(algorithm) else rewards[None]
    refuse_large(problems, episodes.completions, squared)
    return rewards


def has_spread(
    rewards: Float[np.ndarray, "P G"], steps: list[list[Steps]] | None = None
) -> Bool[np.ndarray, " P"]:
    """Whether a group's rewards differ, NaN left out.

    With steps [P][G], whether any of their rewards do, the outcome counting as one step: without
    spread, the advantage of process supervision is 0, as the others are. The steps of an abstained
    completion do not count.
    """
    if steps is not None:
        rewards = _with_steps(rewards, steps)
    low = np.where(np.isnan(rewards), np.inf, rewards).min(-1)
    high = np.where(np.isnan(rewards), -np.inf, rewards).max(-1)
    return high - low > SPREAD


def _with_steps(rewards: np.ndarray, steps: list[list[Steps]]) -> np.ndarray:
    """Rewards f32[P, G] beside those of the steps, f32[P, N], NaN where a group has fewer."""
    rows = []
    for group, solved in zip(rewards, steps, strict=True):
        scored = [s for s, r in zip(solved, group, strict=True) if not np.isnan(r)]
        compared = scored if len(scored) > 1 else []  # one by itself has no spread
        rows.append([*group, *(reward for one in compared for _, reward in one)])
    return np.array(list(itertools.zip_longest(*rows, fillvalue=np.nan))).T


def step_rewards(tokenizer: TextTokenizer, graded: Graded) -> StepRewards | None:
    """The rewards of steps, each at the token that holds its last character; None without any."""
    if graded.steps is None:
        return None
    rollouts = graded.episodes.rollouts
    tokens, mask = np.asarray(rollouts.tokens), np.asarray(rollouts.mask)
    most = max(len(steps) for group in graded.steps for steps in group)
    shape = (*mask.shape[:2], bucket(most, MULTIPLE))
    rewards, ends = np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
    for p, g in np.ndindex(mask.shape[:2]):
        steps, kept = graded.steps[p][g], np.flatnonzero(mask[p, g])
        ids = tokens[p, g, kept].tolist()
        rewards[p, g, : len(steps)] = [reward for _, reward in steps]
        ends[p, g, : len(steps)] = kept[end_tokens(tokenizer, ids, [end for end, _ in steps])]
    return StepRewards(rewards=on_host(rewards), ends=on_host(ends))
