"""Reward models at work: what they say of completions, as rewards.

A reward model is a critic's network, {"body", "value"}, read after a completion's last token. P
prompts, G group, T completion length.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from grpo_jax.errors import UsageError, excerpt
from grpo_jax.files import at_home, fingerprint
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.config_json import is_scoring, read_config_file
from grpo_jax.models.critic import NOT_THE_BODYS, critic_values
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.lora import merge_adapters
from grpo_jax.models.weights import load_weights
from grpo_jax.rewards.call import RewardError
from grpo_jax.rewards.evaluate import Rewarder, Scores, scored_by
from grpo_jax.rewards.turn import remainder
from grpo_jax.rollout.collect import encode_batch
from grpo_jax.runs import checkpoints
from grpo_jax.runs.run import load_config
from grpo_jax.sharding import put_batch
from grpo_jax.tasks.pairs import JUDGED
from grpo_jax.tasks.problem import unread
from grpo_jax.tokenizers import bucket, encode, kept_tokenizer, load_tokenizer, prefill
from grpo_jax.training.experiment import Experiment, build
from grpo_jax.training.pretrained import (
    abstract_params,
    base_sources,
    model_fingerprint,
    pretrained,
)
from grpo_jax.types import Prompts, merged

PREFIX = "reward_model:"  # of a reward's name; the run's folder follows
Judge = Callable[[Sequence[Any], Sequence[Sequence[str]]], np.ndarray]


def rewards_of(
    model: Decoder,
    params: Any,
    prompts: Prompts,
    tokens: jax.Array,
    mask: jax.Array,
    frozen: Any = None,
) -> jax.Array:
    """The reward of whole completions, f32[P, G]; tokens i32, mask bool [P, G, T], right-padded.

    frozen  parameters of the body that are not among `params`, or None
    """
    longer = jnp.pad(tokens, ((0, 0), (0, 0), (0, 1)))  # value t is read before token t
    values = critic_values(model, params, frozen, prompts, longer, None)
    return jnp.take_along_axis(values, mask.sum(-1)[..., None], -1)[..., 0]


rewards = jax.jit(rewards_of, static_argnums=0)


def completions_batch(
    ex: Experiment, problems: Sequence[Any], completions: Sequence[Sequence[str]], cut: bool = True
):
    """Prompts, tokens i32[P, G, T] and mask of texts [P][G], each closed by the stop token.

    cut  to rollout.max_tokens, with prompts up to prompt_length; else all are as long as they are
    """
    c, stop = ex.config, ex.tokenizer.stop[0]
    ids = [[[*encode(ex.tokenizer, text), stop] for text in group] for group in completions]
    T = c.rollout.max_tokens if cut else bucket(max(len(row) for group in ids for row in group))
    tokens = np.zeros((len(problems), len(completions[0]), T), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for p, group in enumerate(ids):
        for g, row in enumerate(group):
            tokens[p, g, : len(row)], mask[p, g, : len(row)] = row[:T], True
    longest = c.prompt_length if cut else sys.maxsize
    prompts = encode_batch(ex.tokenizer, problems, longest, c.rollout.prompt_bucket)
    return put_batch((prompts, tokens, mask), ex.mesh)


def read(
    ex: Experiment, problems: Sequence[Any], turns: Sequence[Sequence[str]]
) -> list[list[Any]]:
    """What the model reads of turns [P][G]: text, or None where there is nothing to judge.

    A turn is a completion, with what its prompt held of it or without (`rewards.turn`).
    """
    judged = ex.config.task.get("judged", "whole")
    found = []
    for problem, group in zip(problems, turns, strict=True):
        held = prefill(ex.tokenizer, problem.prompt)
        left = [remainder(held, turn) for turn in group]
        before = "" if judged == "whole" else held
        found.append([JUDGED[judged](before + text) for text in left])
    return found


def _left(ex: Experiment, problems: Sequence[Any], turns: Sequence[Sequence[str]]) -> list:
    """The turns [P][G] less what the model's own rendering of their prompt holds of them."""
    held = [prefill(ex.tokenizer, problem.prompt) for problem in problems]
    return [
        [remainder(before, t) for t in group] for before, group in zip(held, turns, strict=True)
    ]


def load_judge(folder: Path, asked: Experiment) -> Judge:
    """A reward model, as a function of problems [P] and texts [P][G] to rewards f32[P, G].

    folder  a run of experiments.reward_model, or a Hugging Face directory of a model
            ForSequenceClassification with one label
    asked   the experiment whose completions are judged, on whose mesh

    A run's reads of completions what it was trained on, and `lowest` marks those that have no such
    part; a directory's reads the whole. UsageError where the folder holds no reward model.
    """
    folder = at_home(folder)
    of_run = not is_scoring(folder)
    ex, params = (_of_run if of_run else _of_directory)(folder, asked)

    def judge(problems, completions):
        held = [prefill(asked.tokenizer, problem.prompt) for problem in problems]
        turns = [
            [before + remainder(before, text) for text in group]
            for before, group in zip(held, completions, strict=True)
        ]
        texts = (read if of_run else _left)(ex, problems, turns)
        filled = [[text or "" for text in group] for group in texts]
        batch = completions_batch(ex, problems, filled, cut=of_run)
        judged = np.array([[text is not None for text in group] for group in texts])
        told = np.asarray(rewards(ex.model, params, *batch))
        if not np.isfinite(told).all():
            p, g = np.argwhere(~np.isfinite(told))[0]
            raise RewardError(
                f"reward {PREFIX + str(folder)!r} gives {told[p, g]}; prompt: "
                f"{excerpt(problems[p].prompt)}; completion: {excerpt(completions[p][g])}; valid: "
                "a model whose scores are finite"
            )
        return lowest(told, judged)

    return judge


def _check_run(folder: Path) -> None:
    if not checkpoints.steps(folder / "checkpoints"):
        raise UsageError(
            f"{PREFIX}{folder}: no reward model; valid: a run of experiments.reward_model, or a "
            "Hugging Face directory of a model ForSequenceClassification"
        )


def _of_run(folder: Path, asked: Experiment) -> tuple[Experiment, Any]:
    _check_run(folder)
    params, _ = checkpoints.restore_params(folder / "checkpoints")
    if "value" not in params:
        raise UsageError(f"{PREFIX}{folder}: that run's model writes and does not score")
    own = build(load_config(folder), kept_tokenizer(folder / "tokenizer"), unread())
    ex = dataclasses.replace(own, mesh=asked.mesh)
    return ex, with_frozen(ex, jax.device_put(params, NamedSharding(ex.mesh, PartitionSpec())))


def with_frozen(ex: Experiment, params: Any) -> Any:
    """A run's {"value", "body"} with all of the body: what its adapters are on, routers' biases."""
    routers = {name: x for name, x in params.items() if name not in ("value", "body")}
    base = pretrained(ex) if ex.model.config.lora.rank else None
    return {"value": params["value"], "body": merged(base, routers, params["body"])}


def _of_directory(folder: Path, asked: Experiment) -> tuple[Experiment, Any]:
    how = {name: getattr(asked.model.config, name) for name in ("dtype", "param_dtype")}
    c = dataclasses.replace(read_config_file(folder), **how)
    ex = dataclasses.replace(asked, model=Decoder(c), tokenizer=load_tokenizer(folder))
    everywhere = NamedSharding(ex.mesh, PartitionSpec())
    head = jax.ShapeDtypeStruct((1, c.hidden), jnp.float32, sharding=everywhere)
    body = load_weights(folder, c, abstract_params(ex.model, ex.mesh) | {"score": head})
    return ex, {"value": body.pop("score")[0], "body": body}


def scoring_params(ex: Experiment, params: Any) -> tuple[ModelConfig, Any]:
    """A run's reward model, adapters merged, as `save_model` writes a ForSequenceClassification."""
    c = ex.model.config
    body = merge_adapters(c, with_frozen(ex, params)["body"])
    kept = {name: x for name, x in body.items() if name not in NOT_THE_BODYS}
    return dataclasses.replace(c, tied=True, mtp=0), {**kept, "score": params["value"][None]}


def lowest(rewards: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Rewards f32[P, G], where bool[P, G] is False one below the least judged one of the group.

    So nothing is gained by leaving out what is judged, whatever the scale of the rewards. A group
    without one takes the batch's least; NaN, which abstains, where nothing at all was judged.
    """
    known = np.where(judged, rewards, np.inf)
    least = known.min(-1, keepdims=True)
    below = np.where(np.isinf(least), known.min(), least) - 1
    return np.where(judged, rewards, np.where(np.isinf(below), np.nan, below)).astype(np.float32)


def only(judge: Judge, ex: Experiment, asked: Sequence[bool] | np.ndarray) -> Judge:
    """The judge of those problems that bool[P] asks about: it never sees others, which are NaN.

    A batch is filled up to a power of two of problems a device, so that few programs serve all.
    """
    places = np.flatnonzero(asked)
    rows = ex.mesh.shape["data"] * ex.mesh.shape["fsdp"]

    def judged(problems, completions):
        found = np.full((len(problems), len(completions[0])), np.nan, np.float32)
        if places.size:
            size = rows << (-(-len(places) // rows) - 1).bit_length()
            size = min(size, -(-len(problems) // rows) * rows)
            chosen = [*places, *[places[0]] * (size - len(places))]
            told = judge([problems[i] for i in chosen], [completions[i] for i in chosen])
            found[places] = told[: len(places)]
        return found

    return judged


def judge_sources(names: Iterable[str]) -> dict[str, str]:
    """Fingerprints of the reward models among `names`: of a directory's files, of a run's newest
    checkpoint, and of what its adapters are on. UsageError where there is none."""
    found: dict[str, str] = {}
    for name in names:
        folder = at_home(name.removeprefix(PREFIX))
        if not name.startswith(PREFIX):
            continue
        if is_scoring(folder):
            found[name] = model_fingerprint(folder)
            continue
        _check_run(folder)
        newest = folder / "checkpoints" / str(checkpoints.steps(folder / "checkpoints")[-1])
        found[name] = fingerprint(newest / "checksums.json")
        found |= base_sources(load_config(folder))
    return found


def with_judges(
    rewarder: Rewarder, names: Sequence[str], asked: Experiment
) -> Callable[..., Callable[[], Scores]]:
    """`rewarder.submit`, with what the reward models among `names` say added to the scores.

    They score on the accelerator, in this process, once the scores are asked for, while the others
    are at work in theirs.
    """
    chosen = [name for name in names if name.startswith(PREFIX)]
    judges = {name: load_judge(Path(name.removeprefix(PREFIX)), asked) for name in chosen}

    def submit(problems, completions) -> Callable[[], Scores]:
        scores = rewarder.submit(problems, completions)

        def wait() -> Scores:
            judged = {}
            for name, judge in judges.items():
                its = [scored_by(problem, name) for problem in problems]
                judged[name] = only(judge, asked, its)(problems, completions)
            others = scores()
            return others._replace(parts=others.parts | judged)

        return wait

    return submit
