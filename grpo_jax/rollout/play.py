"""Play problems with an engine and environments; returns episodes, on the host.

P prompts, G group, S prompt length, T completion length.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key

from grpo_jax.engines.base import Engine
from grpo_jax.engines.filters import Sampling
from grpo_jax.engines.stops import cut
from grpo_jax.environments.base import Environment
from grpo_jax.environments.single_turn import SingleTurn
from grpo_jax.errors import UsageError
from grpo_jax.hosts import fetch
from grpo_jax.sharding import put_batch
from grpo_jax.tasks import Problem
from grpo_jax.tokenizers import TextTokenizer, bucket, decode, encode_prompts, prompt_ids
from grpo_jax.types import Params, Prompts, Rollouts, on_host


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episodes:
    """Rollouts on the host, with their problems [P] and what the policy wrote, text [P][G].

    measure  the engine's own metrics of rollouts, or None
    """

    problems: list[Problem]
    rollouts: Rollouts
    completions: list[list[str]]
    measure: Callable[[Rollouts], dict[str, float]] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Player:
    """What it takes to play problems, in training, evaluation and sampling.

    environment    makes the environment of one completion
    prompt_length  tokens of the longest prompt that is read
    prompt_bucket  prompts are padded to a multiple of it
    stop           texts that end a completion
    """

    engine: Engine
    tokenizer: TextTokenizer
    mesh: Mesh
    prompt_length: int
    prompt_bucket: int
    stop: tuple[str, ...] = ()
    environment: Callable[[], Environment] = SingleTurn


def play(
    player: Player,
    params: Params,
    problems: Sequence[Problem],
    keys: Key[Array, "P G"],
    sampling: Sampling,
) -> Episodes:
    """Each problem's group, one completion for each key; the same keys play the same.

    UsageError for an environment that goes on after the policy's first turn, or rewards it.
    """
    rollouts = generate(player, params, encode(player, problems), keys, sampling)
    return finish(player, problems, rollouts)


def encode(player: Player, problems: Sequence[Problem]) -> Prompts:
    """The prompts that the environments begin with, as `encode_batch`."""
    begun = [dataclasses.replace(p, prompt=player.environment().reset(p)) for p in problems]
    return encode_batch(player.tokenizer, begun, player.prompt_length, player.prompt_bucket)


def generate(
    player: Player, params: Params, prompts: Prompts, keys: Key[Array, "P G"], sampling: Sampling
) -> Rollouts:
    """The engine's completions, on the host."""
    place = put_batch(prompts, player.mesh)
    return fetch(player.engine.generate(params, place, put_batch(keys, player.mesh), sampling))


def finish(player: Player, problems: Sequence[Problem], rollouts: Rollouts) -> Episodes:
    """Rollouts on the host as episodes, once their environments have answered."""
    tokens, mask = np.asarray(rollouts.tokens), np.asarray(rollouts.mask)
    completions = texts(player.tokenizer, tokens, mask, player.stop)
    for problem, group in zip(problems, completions, strict=True):
        for text in group:
            environment = player.environment()
            environment.reset(problem)
            turn, name = environment.step(text), type(environment).__name__
            if not turn.done:
                raise UsageError(
                    f"environment {name} goes on after the first turn; valid: one that is done then"
                )
            if turn.reward is not None:
                raise UsageError(
                    f"environment {name} gives the turn a reward, {turn.reward!r}, which nothing "
                    "reads; valid: None, and a reward in config.rewards"
                )
    return Episodes(
        problems=list(problems),
        rollouts=rollouts,
        completions=completions,
        measure=getattr(player.engine, "metrics", None),
    )


def encode_batch(
    tokenizer: TextTokenizer, problems: Sequence[Problem], longest: int, multiple: int
) -> Prompts:
    """Left-padded Prompts [P, S], S the bucket of the longest prompt.

    ValueError, naming the prompt, where one has more than `longest` tokens.
    """
    lengths = [len(prompt_ids(tokenizer, p.prompt)) for p in problems]
    S = min(bucket(max(lengths), multiple), longest) if max(lengths) <= longest else longest
    tokens, mask = map(on_host, encode_prompts(tokenizer, problems, S))
    return Prompts(tokens=tokens, mask=mask)


def texts(
    tokenizer: TextTokenizer,
    tokens: Int[np.ndarray, "P G T"],
    mask: Bool[np.ndarray, "P G T"],
    stop: Sequence[str] = (),
) -> list[list[str]]:
    """Completions as text, [P][G].

    One that ends with a stop string ends right after it, even inside its last token.
    """
    return [
        [cut(decode(tokenizer, row[kept]), stop) for row, kept in zip(*group, strict=True)]
        for group in zip(tokens, mask, strict=True)
    ]
