"""Reward models applied: their scores of completions, as rewards.

A reward model is a critic's network, {"body", "value"}, read after a completion's last token. P
prompts, G group, T completion length.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.errors import excerpt
from grpo_jax.models.critic import critic_values
from grpo_jax.models.decoder import Decoder
from grpo_jax.rewards.call import RewardError
from grpo_jax.rewards.evaluate import scored_by
from grpo_jax.rewards.turn import remainder
from grpo_jax.rollout.play import encode_batch
from grpo_jax.sharding import put_batch
from grpo_jax.tasks import Problem
from grpo_jax.tasks.pairs import JUDGED
from grpo_jax.tokenizers import TextTokenizer, bucket, encode, prefill
from grpo_jax.types import Params, Prompts, on_host

Texts = Sequence[Sequence[str]]  # [P][G]
Scorer = Callable[[Sequence[Problem], Texts], Float[np.ndarray, "P G"]]
AS_RENDERED = ""  # of `Reader.judged`: the whole turn, as the model's own template lays it out


class Pairs(NamedTuple):
    """Prompts with completions, right-padded and closed by the stop token."""

    prompts: Prompts
    tokens: Int[Array, "P G T"]
    mask: Bool[Array, "P G T"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """How a reward model reads texts.

    judged         what it reads of a turn: a name of `tasks.pairs.JUDGED`, or AS_RENDERED
    prompt_length  tokens of the longest prompt
    max_tokens     to which completions are cut
    """

    tokenizer: TextTokenizer
    mesh: Mesh
    judged: str
    prompt_length: int
    prompt_bucket: int
    max_tokens: int

    @property
    def whole(self) -> "Reader":
        """The reader of what is as long as it is, on both sides."""
        return dataclasses.replace(self, prompt_length=sys.maxsize, max_tokens=sys.maxsize)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModel:
    """A reward model, ready to score on its reader's mesh; name as messages have it."""

    name: str
    model: Decoder
    params: Params
    reader: Reader


def rewards_of(
    model: Decoder,
    params: Params,
    prompts: Prompts,
    tokens: Int[Array, "P G T"],
    mask: Bool[Array, "P G T"],
    frozen: Params | None = None,
) -> Float[Array, "P G"]:
    """The reward of whole completions, right-padded.

    frozen  parameters of the body that are not among `params`, or None
    """
    longer = jnp.pad(tokens, ((0, 0), (0, 0), (0, 1)))  # value t is read before token t
    values = critic_values(model, params, frozen, prompts, longer, None)
    return jnp.take_along_axis(values, mask.sum(-1)[..., None], -1)[..., 0]


rewards = jax.jit(rewards_of, static_argnums=0)


def encode_pairs(reader: Reader, problems: Sequence[Problem], completions: Texts) -> Pairs:
    """Prompts and completions on the mesh, each completion closed by the stop token, and cut."""
    stop, limit = reader.tokenizer.stop[0], reader.max_tokens
    ids = [[[*encode(reader.tokenizer, text), stop] for text in group] for group in completions]
    longest = bucket(max(len(row) for group in ids for row in group))
    T = longest if limit == sys.maxsize else limit
    tokens = np.zeros((len(problems), len(completions[0]), T), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for p, group in enumerate(ids):
        for g, row in enumerate(group):
            tokens[p, g, : len(row)], mask[p, g, : len(row)] = row[:T], True
    prompts = encode_batch(reader.tokenizer, problems, reader.prompt_length, reader.prompt_bucket)
    pairs = Pairs(prompts, on_host(tokens), on_host(mask))
    return put_batch(pairs, reader.mesh)


def read(reader: Reader, problems: Sequence[Problem], turns: Texts) -> list[list[str | None]]:
    """The text that the model reads of each turn; None where there is nothing to score.

    A turn is a completion, with what its prompt held of it or without (`rewards.turn`).
    """
    found: list[list[str | None]] = []
    for problem, group in zip(problems, turns, strict=True):
        held = prefill(reader.tokenizer, problem.prompt)
        left = [remainder(held, turn) for turn in group]
        if reader.judged == AS_RENDERED:
            found.append([*left])
            continue
        before = "" if reader.judged == "whole" else held
        found.append([JUDGED[reader.judged](before + text) for text in left])
    return found


def score(
    scorer: RewardModel, asked: TextTokenizer, problems: Sequence[Problem], completions: Texts
) -> Float[np.ndarray, "P G"]:
    """The scores of completions as rewards; `lowest` for those with nothing to score.

    asked  the tokenizer by which their prompts were laid out

    RewardError for a score that is not finite.
    """
    held = [prefill(asked, problem.prompt) for problem in problems]
    turns = [
        [before + remainder(before, text) for text in group]
        for before, group in zip(held, completions, strict=True)
    ]
    texts = read(scorer.reader, problems, turns)
    filled = [[text or "" for text in group] for group in texts]
    batch = encode_pairs(scorer.reader, problems, filled)
    scored = np.array([[text is not None for text in group] for group in texts])
    found = np.asarray(rewards(scorer.model, scorer.params, *batch))
    if not np.isfinite(found).all():
        p, g = np.argwhere(~np.isfinite(found))[0]
        raise RewardError(
            f"reward {scorer.name!r} gives {found[p, g]}; prompt: {excerpt(problems[p].prompt)}; "
            f"completion: {excerpt(completions[p][g])}; valid: a model whose scores are finite"
        )
    return lowest(found, scored)


def lowest(rewards: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Rewards f32[P, G]; where bool[P, G] is False, one less than the group's lowest score.

    So leaving out what the model reads gains nothing, whatever the scale of the scores. A group
    without a score takes the batch's lowest; NaN, which abstains, where nothing has a score.
    """
    known = np.where(scored, rewards, np.inf)
    least = known.min(-1, keepdims=True)
    below = np.where(np.isinf(least), known.min(), least) - 1
    return np.where(scored, rewards, np.where(np.isinf(below), np.nan, below)).astype(np.float32)


def only(scorer: Scorer, mesh: Mesh, asked: Sequence[bool] | np.ndarray) -> Scorer:
    """The reward model for those problems that bool[P] selects; the others, which it never sees,
    are NaN.

    A batch is filled up to a power of two of problems a device, so that few programs serve all.
    """
    places = np.flatnonzero(asked)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]

    def scored(problems, completions):
        found = np.full((len(problems), len(completions[0])), np.nan, np.float32)
        if places.size:
            size = rows << (-(-len(places) // rows) - 1).bit_length()
            size = min(size, -(-len(problems) // rows) * rows)
            chosen = [*places, *[places[0]] * (size - len(places))]
            scores = scorer([problems[i] for i in chosen], [completions[i] for i in chosen])
            found[places] = scores[: len(places)]
        return found

    return scored


def asked_only(scorer: Scorer, mesh: Mesh, name: str) -> Scorer:
    """The reward model called `name`, which sees only the problems that ask for it."""

    def scored(problems: Sequence[Problem], completions: Texts) -> Float[np.ndarray, "P G"]:
        its = [scored_by(problem, name) for problem in problems]
        return only(scorer, mesh, its)(problems, completions)

    return scored
