"""Experiments that are small enough to test, for the upper floors."""

import dataclasses
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from grpo_jax.config import defaults, resolve
from grpo_jax.rewards.evaluate import Failures, Scores
from grpo_jax.rollout.grade import Grader, grade
from grpo_jax.rollout.play import Episodes
from grpo_jax.runs import curves

# The NumPy decoder of tests/models is the independent source here too.
sys.path.append(str(Path(__file__).resolve().parent / "models"))
import reference  # noqa: F401


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    """Compile for less time and run for more, as these programs are tiny; and write curves.png
    without the second that drawing it takes: tests/test_metrics.py draws."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "picture", lambda found, columns: b"")
        yield
    jax.config.update(name, before)


def tiny_config(**changes):
    """A resolved config of one-digit addition; changes as {"rollout.group": 2}."""
    config = defaults()
    config.compilation_cache, config.reward_workers = "", 1
    config.task.update(digits=1, heldout_size=8)
    config.prompt_length = 8
    config.model.update(layers=1, hidden=16, heads=2, kv_heads=1, ff=16)
    config.rollout.update(prompts=4, group=4, max_tokens=18, prompt_bucket=8)
    config.eval.every = 0
    config.update_from_flattened_dict(changes)
    return resolve(config)


def sevens(prompts, completions, **columns):
    """The share of "7" in a completion; nothing could be easier to learn."""
    return [c.count("7") / max(len(c), 1) for c in completions]


def even(prompts, completions, **columns):
    """1 for a completion of an even number of characters."""
    return [float(len(c) % 2 == 0) for c in completions]


def sometimes(prompts, completions, **columns):
    """Abstains on everything but a first completion."""
    return [1.0] + [None] * (len(completions) - 1)


def deadly(prompts, completions, **columns):
    """Ends its process on a completion that begins with 7, 8 or 9."""
    if any(c.startswith(("7", "8", "9")) for c in completions):
        os._exit(3)
    return [0.0] * len(completions)


def raises(prompts, completions, **columns):
    raise KeyError("no such thing")


def too_few(prompts, completions, **columns):
    return [1.0]


def graded_by(ex, problems, completions, parts, combination="sum", timeouts=0, lost=False):
    """The grades of completions [P][G] whose rewards are `parts`, by name."""
    shape = (len(problems), len(completions[0]))
    scores = Scores(parts, timeouts, np.broadcast_to(lost, shape))
    grader = Grader(
        rewarder=SimpleNamespace(submit=lambda *_: lambda: scores),
        weights=ex.config.rewards.to_dict(),
        reward_models={},
        failures=Failures(1),
        algorithm=dataclasses.replace(ex.algorithm, reward_combination=combination),
        task=ex.task,
        tokenizer=ex.tokenizer,
    )
    episodes = Episodes(problems=problems, rollouts=None, completions=completions)
    return grade(grader, episodes, 1)()
