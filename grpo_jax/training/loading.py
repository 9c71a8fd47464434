"""Models ready to sample on one device: of a run's folder, or of a Hugging Face directory.

RUN is a run's newest checkpoint, and RUN/checkpoints/STEP another of its checkpoints.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import NamedTuple

from ml_collections import FrozenConfigDict

from grpo_jax.config import defaults, resolve
from grpo_jax.config.fields import FrozenFields
from grpo_jax.errors import UsageError
from grpo_jax.files import Json, JsonMapping, at_home
from grpo_jax.models.config_json import read_config_file
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.lora import merge_adapters
from grpo_jax.models.weights import load_weights
from grpo_jax.runs import checkpoints
from grpo_jax.runs.run import changed_sources, load_config, load_record, read_steps
from grpo_jax.sharding import make_mesh
from grpo_jax.tasks.problem import Task, unread
from grpo_jax.tokenizers import TextTokenizer, kept_tokenizer, load_tokenizer
from grpo_jax.training.experiment import Experiment, build, read_task
from grpo_jax.training.pretrained import abstract_params, pretrained
from grpo_jax.types import Params, merged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model ready to sample: the decoder, its parameters, and the tokenizer.

    max_tokens  tokens of the run's longest completion; None where it is of no run
    origin      where it comes from, in words
    stop        the run's stop strings
    """

    decoder: Decoder = dataclasses.field(repr=False)
    params: Params = dataclasses.field(repr=False)
    tokenizer: TextTokenizer = dataclasses.field(repr=False)
    max_tokens: int | None = None
    origin: str
    stop: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A run read from its folder.

    metrics      of each step, as in metrics.jsonl
    evaluations  as in eval.jsonl
    """

    folder: Path
    config: FrozenConfigDict
    metrics: list[Json]
    evaluations: list[Json]

    @functools.cached_property
    def model(self) -> Model:
        """The model of its newest checkpoint."""
        return load_model(self.folder)


def load_run(folder: Path | str) -> SavedRun:
    """The run in a folder; UsageError where there is none."""
    folder = at_home(folder)
    return SavedRun(
        folder=folder,
        config=load_config(folder),
        metrics=read_steps(folder / "metrics.jsonl"),
        evaluations=read_steps(folder / "eval.jsonl"),
    )


class Loaded(NamedTuple):
    """The experiment of a run or of a directory, the parameters, and their step, 0 = none."""

    experiment: Experiment
    params: Params
    step: int


class RunAndStep(NamedTuple):
    """The folder of a run, and one of its steps; None = the newest."""

    run: Path
    step: int | None


def run_and_step(folder: Path) -> RunAndStep:
    """The run that a folder is of, and the step where it is one of the run's checkpoints.

    UsageError for another name among the checkpoints.
    """
    if folder.parent.name != "checkpoints" or (folder / "config.json").exists():
        return RunAndStep(folder, None)
    step = checkpoints.step_of(folder.name)
    if step is None:
        found = checkpoints.steps(folder.parent)
        raise UsageError(f"{folder} is no checkpoint of {folder.parent.parent}; valid: {found}")
    return RunAndStep(folder.parent.parent, step)


def has_checkpoints(folder: Path) -> bool:
    """Whether a folder, or the run that it is a checkpoint of, has checkpoints."""
    return (run_and_step(folder)[0] / "checkpoints").exists()


def check_model(folder: Path) -> None:
    """UsageError where a folder holds neither a run nor a Hugging Face directory."""
    if not has_checkpoints(folder) and not (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds no run and no model: there is no config.json in it")


def load(workdir: Path, scores: bool = False, task: Task | None = None) -> Loaded:
    """As `load_trained`, with the run's own problems where no task is given; a note on stderr where
    these have changed."""
    if task is not None:
        return load_trained(workdir, scores, task)
    run, _ = run_and_step(workdir)
    task = read_task(load_config(run))
    loaded = load_trained(workdir, scores, task)
    for name in changed_sources(load_record(run), loaded.experiment.sources()):
        since = f"{name} has changed since {run} began"
        print(f"warning: {since}: its own evaluations were on other problems", file=sys.stderr)
    return loaded


def load_trained(workdir: Path, scores: bool = False, task: Task | None = None) -> Loaded:
    """The run in `workdir`, whatever mesh it trained on.

    The tokenizer is the run's, and nothing is read of its task's files: `task` has its problems,
    or none. Adapters come with the parameters under them. Raises UsageError where there is no run,
    or no whole checkpoint in it, or, unless it may be one that `scores`, a reward model's.
    """
    run, step = run_and_step(workdir)
    plain = load_config(run).to_dict()
    plain["mesh"] = dict.fromkeys(plain["mesh"], 1)
    params, step = checkpoints.restore_params(run / "checkpoints", step)
    if "value" in params and not scores:
        raise UsageError(f"{workdir} holds a reward model, which scores and does not write")
    tokenizer = kept_tokenizer(run / "tokenizer")
    ex = build(FrozenFields(plain), tokenizer, task or unread(plain["task"]["name"]))
    if ex.model.config.lora.rank and "value" not in params:
        params = merged(pretrained(ex.origin), params)
    return Loaded(ex, params, step)


def asked_the_same(
    folder: Path, config: FrozenConfigDict | JsonMapping, task: Task | None = None
) -> Loaded:
    """A run or Hugging Face directory with the problems of another config, or of a task.

    The model, its tokenizer and its mesh are its own, and so is what its chat template is given
    where the resolved config gives nothing of that name; all else is as the config says.
    """
    plain = dict(config.to_dict() if isinstance(config, FrozenConfigDict) else config)
    if has_checkpoints(folder) or not (folder / "config.json").is_file():
        own, params, step = load_trained(folder)
        kept, tokenizer = own.config.to_dict(), own.tokenizer
    else:
        asked = defaults()
        asked.model.path = str(folder)
        kept, params, step = resolve(asked).to_dict(), {}, 0
        tokenizer = load_tokenizer(folder)
    plain |= {name: kept[name] for name in ("model", "tokenizer", "mesh")}
    plain["chat_template_kwargs"] = kept["chat_template_kwargs"] | plain["chat_template_kwargs"]
    ex = build(FrozenFields(plain), tokenizer, task)  # "char" is of the task it was built for
    return Loaded(ex, params or pretrained(ex.origin) or {}, step)


def load_model(folder: Path | str) -> Model:
    """The model of a run's folder or of a Hugging Face directory, adapters merged.

    UsageError where it is neither.
    """
    folder = at_home(folder)
    if has_checkpoints(folder):
        ex, params, step = load_trained(folder)
        return live_model(ex, merge_adapters(ex.model.config, params), f"{folder}, step {step}")
    check_model(folder)
    decoder = Decoder(read_config_file(folder))
    params = load_weights(folder, decoder.config, abstract_params(decoder, make_mesh()))
    tokenizer = load_tokenizer(folder)
    return Model(decoder=decoder, params=params, tokenizer=tokenizer, origin=str(folder))


def live_model(ex: Experiment, params: Params, origin: str) -> Model:
    """An experiment's model with these parameters."""
    return Model(
        decoder=ex.model,
        params=params,
        tokenizer=ex.tokenizer,
        max_tokens=ex.config.rollout.max_tokens,
        origin=origin,
        stop=ex.config.rollout.stop,
    )
