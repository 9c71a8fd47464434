"""Reward models from the folders of runs, and from Hugging Face directories."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from grpo_jax.errors import UsageError
from grpo_jax.files import at_home, fingerprint
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.config_json import is_scoring, read_config_file
from grpo_jax.models.critic import NOT_THE_BODYS
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.lora import merge_adapters
from grpo_jax.models.weights import load_weights
from grpo_jax.rollout.reward_models import (
    AS_RENDERED,
    Reader,
    RewardModel,
    Scorer,
    asked_only,
    score,
)
from grpo_jax.runs import checkpoints
from grpo_jax.runs.run import load_config
from grpo_jax.tasks.problem import unread
from grpo_jax.tokenizers import kept_tokenizer, load_tokenizer
from grpo_jax.training.experiment import build
from grpo_jax.training.pretrained import (
    Origin,
    abstract_params,
    base_sources,
    model_fingerprint,
    pretrained,
)
from grpo_jax.types import Params, merged

PREFIX = "reward_model:"  # of a reward's name; the run's folder follows


class ScoringModel(NamedTuple):
    """A model ForSequenceClassification."""

    config: ModelConfig
    params: Params


def load_reward_model(folder: Path, asked: Reader, like: ModelConfig) -> Scorer:
    """A reward model, as a function of problems [P] and texts [P][G] to rewards f32[P, G].

    folder  a run of experiments.reward_model, or a Hugging Face directory of a model
            ForSequenceClassification with one label
    asked   how the policy whose completions are scored reads, and on which mesh
    like    whose number types a directory's model computes in

    A run's model reads of a completion what it was trained on, the whole or the final answer;
    completions without one get less than any other. A directory's model reads the whole. UsageError
    where the folder holds no reward model.
    """
    folder = at_home(folder)
    model = (_of_directory if is_scoring(folder) else _of_run)(folder, asked, like)

    def scorer(problems, completions):
        return score(model, asked.tokenizer, problems, completions)

    return scorer


def load_reward_models(names: Sequence[str], asked: Reader, like: ModelConfig) -> dict[str, Scorer]:
    """The reward models among the names of rewards, each of which sees the problems that ask for
    it, and no others; UsageError as of `load_reward_model`."""
    folders = {name: Path(name.removeprefix(PREFIX)) for name in names if name.startswith(PREFIX)}
    return {
        name: asked_only(load_reward_model(folder, asked, like), asked.mesh, name)
        for name, folder in folders.items()
    }


def _check_run(folder: Path) -> None:
    if not checkpoints.steps(folder / "checkpoints"):
        raise UsageError(
            f"{PREFIX}{folder}: no reward model; valid: a run of experiments.reward_model, or a "
            "Hugging Face directory of a model ForSequenceClassification"
        )


def _of_run(folder: Path, asked: Reader, like: ModelConfig) -> RewardModel:
    del like  # it computes as it was trained
    _check_run(folder)
    params, _ = checkpoints.restore_params(folder / "checkpoints")
    if "value" not in params:
        raise UsageError(f"{PREFIX}{folder}: that run's model writes and does not score")
    own = build(load_config(folder), kept_tokenizer(folder / "tokenizer"), unread())
    origin = own.origin._replace(mesh=asked.mesh)
    params = jax.device_put(params, NamedSharding(asked.mesh, PartitionSpec()))
    return RewardModel(
        name=f"{PREFIX}{folder}",
        model=own.model,
        params=with_frozen(origin, params),
        reader=dataclasses.replace(own.reader, mesh=asked.mesh),
    )


def _of_directory(folder: Path, asked: Reader, like: ModelConfig) -> RewardModel:
    how = {name: getattr(like, name) for name in ("dtype", "param_dtype")}
    c = dataclasses.replace(read_config_file(folder), **how)
    model, everywhere = Decoder(c), NamedSharding(asked.mesh, PartitionSpec())
    head = jax.ShapeDtypeStruct((1, c.hidden), jnp.float32, sharding=everywhere)
    body = load_weights(folder, c, abstract_params(model, asked.mesh) | {"score": head})
    whole = dataclasses.replace(asked, tokenizer=load_tokenizer(folder)).whole
    return RewardModel(
        name=f"{PREFIX}{folder}",
        model=model,
        params={"value": body.pop("score")[0], "body": body},
        reader=dataclasses.replace(whole, judged=AS_RENDERED),
    )


def with_frozen(origin: Origin, params: Params) -> Params:
    """A run's {"value", "body"} with all of the body: what its adapters are on, routers' biases."""
    routers = {name: x for name, x in params.items() if name not in ("value", "body")}
    base = pretrained(origin) if origin.model.config.lora.rank else None
    return {"value": params["value"], "body": merged(base, routers, params["body"])}


def scoring_params(origin: Origin, params: Params) -> ScoringModel:
    """A run's reward model, adapters merged, as `save_model` writes a ForSequenceClassification."""
    c = origin.model.config
    body = merge_adapters(c, with_frozen(origin, params)["body"])
    kept = {name: x for name, x in body.items() if name not in NOT_THE_BODYS}
    scoring = {**kept, "score": params["value"][None]}
    return ScoringModel(dataclasses.replace(c, tied=True, mtp=0), scoring)


def reward_model_sources(names: Iterable[str]) -> dict[str, str]:
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
