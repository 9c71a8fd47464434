"""A model's completions of prompts, and its accuracy on held-out problems."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict, FrozenConfigDict

from grpo_jax.config import resolve
from grpo_jax.config.checks import SEED_MAX, check_stop
from grpo_jax.console.progress import doing
from grpo_jax.engines import completion_keys
from grpo_jax.engines.filters import Sampling
from grpo_jax.engines.lockstep import Lockstep
from grpo_jax.engines.stops import stop_table
from grpo_jax.errors import UsageError
from grpo_jax.files import at_home
from grpo_jax.rewards.turn import Prompt
from grpo_jax.rollout.play import Player, play
from grpo_jax.sharding import make_mesh, using
from grpo_jax.tasks import Problem, Task
from grpo_jax.tokenizers import prompt_ids
from grpo_jax.training.evaluation import evaluate_policy
from grpo_jax.training.loading import Model, SavedRun, asked_the_same, load

MAX_TOKENS = 256  # of completions, where the model is of no run
BUCKET = 16  # prompts are padded to a multiple of this


class Sampled(NamedTuple):
    """Completions of prompts.

    texts     [P][n], without the stop token
    finished  False where a completion was cut at max_tokens
    """

    texts: list[list[str]]
    finished: Bool[np.ndarray, "P n"]


def sample(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    n: int = 1,
    temperature: float = 0.0,
    max_tokens: int | None = None,
    stop: Sequence[str] | None = None,
    seed: int = 0,
) -> Sampled:
    """n completions of each prompt, on one device.

    prompts      texts as the task writes them, or conversations: lists of {"role", "content"}
    temperature  0 = greedy
    max_tokens   None = the run's, or 256
    stop         texts that end a completion; None = the run's
    seed         of the noise at temperatures above 0

    UsageError for an impossible argument.
    """
    _check_arguments(prompts, n, temperature, max_tokens, seed)
    strings = model.stop if stop is None else tuple(stop)
    name = "config.rollout.stop" if stop is None else "stop"
    check_stop(strings, name)
    width, mesh = model.decoder.config.vocab_size, make_mesh()
    stops = jnp.asarray(stop_table(model.tokenizer, strings, width, name)) if strings else None
    longest = max(len(prompt_ids(model.tokenizer, prompt)) for prompt in prompts)
    player = Player(
        engine=Lockstep(model=model.decoder, stops=stops),
        tokenizer=model.tokenizer,
        mesh=mesh,
        prompt_length=longest + BUCKET,
        prompt_bucket=BUCKET,
        stop=strings,
    )
    limit = max_tokens or model.max_tokens or MAX_TOKENS
    keys = completion_keys(jax.random.key(seed), 0, np.arange(len(prompts)), n)
    sampling = Sampling(limit, model.tokenizer.stop, temperature)
    problems = [Problem(prompt) for prompt in prompts]
    with using(mesh), doing("sampling"):
        played = play(player, model.params, problems, keys, sampling)
    return Sampled(played.completions, np.asarray(played.rollouts.finished))


def _check_arguments(
    prompts: Sequence[Prompt], n: int, temperature: float, max_tokens: int | None, seed: int
) -> None:
    if isinstance(prompts, str) or not prompts:
        raise UsageError(f"prompts: {prompts!r}; valid: a list of one or more")
    if isinstance(prompts[0], dict):
        raise UsageError("prompts: one conversation; valid: a list of them, [conversation]")
    _check_counts(n=n, max_tokens=max_tokens)
    if not 0 <= seed <= SEED_MAX:
        raise UsageError(f"seed={seed}; valid: 0 to {SEED_MAX}")
    if not temperature >= 0:
        raise UsageError(f"temperature={temperature}; valid: at least 0")


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}; valid: at least 1")


def evaluate(
    run: SavedRun | Path | str,
    *,
    config: ConfigDict | FrozenConfigDict | None = None,
    task: Task | None = None,
    problems: int | None = None,
    samples: int | None = None,
) -> dict[str, float]:
    """Accuracy on held-out problems, as a line of eval.jsonl, of a run's newest checkpoint.

    run       or a folder: of a run, of one of its checkpoints, or a Hugging Face directory
    config    whose problems are used; None = the run's own
    task      in place of the config's
    problems  how many; None = the config's eval.problems
    samples   completions a problem, for pass@k and maj@k; None = the config's eval.samples

    UsageError where the folder holds no model, and for a directory without a config.
    """
    _check_counts(problems=problems)
    if samples is not None and samples < 0:
        raise UsageError(f"samples={samples}; valid: at least 0")
    folder = run.folder if isinstance(run, SavedRun) else at_home(run)
    if config is None:
        ex, params, _ = load(folder, task=task)
    else:
        ex, params, _ = asked_the_same(folder, resolve(config), task)
    e = ex.config.eval
    counts = e.problems if problems is None else problems, e.samples if samples is None else samples
    with ex.rewarder(("accuracy",)) as rewarder, using(ex.mesh):
        return evaluate_policy(ex, params, rewarder, *counts, "problems").metrics
