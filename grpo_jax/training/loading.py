"""Models ready to be asked on one device: of a run's folder, or of a Hugging Face directory.

RUN is a run's newest checkpoint, and RUN/checkpoints/STEP another of its checkpoints.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from grpo_jax.config import defaults, resolve
from grpo_jax.config.fields import FrozenFields
from grpo_jax.errors import UsageError
from grpo_jax.models.config_json import read_config_file
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.lora import merge_adapters
from grpo_jax.models.weights import load_weights
from grpo_jax.runs import checkpoints
from grpo_jax.runs.run import changed_sources, load_config, load_record
from grpo_jax.sharding import make_mesh
from grpo_jax.tasks.problem import Task, unread
from grpo_jax.tokenizers import TextTokenizer, kept_tokenizer, load_tokenizer
from grpo_jax.training.experiment import Experiment, build, read_task
from grpo_jax.training.pretrained import abstract_params, pretrained
from grpo_jax.types import merged


class Model(NamedTuple):
    """A model and its tokenizer; max_tokens is the run's, or None, and stop its stop strings."""

    model: Decoder
    params: Any
    tokenizer: TextTokenizer
    max_tokens: int | None
    origin: str
    stop: tuple[str, ...] = ()


def run_and_step(folder: Path) -> tuple[Path, int | None]:
    """The run that a folder is of, and the step where it is one of the run's checkpoints.

    UsageError for another name among the checkpoints.
    """
    if folder.parent.name != "checkpoints" or (folder / "config.json").exists():
        return folder, None
    step = checkpoints.step_of(folder.name)
    if step is None:
        found = checkpoints.steps(folder.parent)
        raise UsageError(f"{folder} is no checkpoint of {folder.parent.parent}; valid: {found}")
    return folder.parent.parent, step


def holds_run(folder: Path) -> bool:
    """Whether a folder, or the run that it is a checkpoint of, has checkpoints."""
    return (run_and_step(folder)[0] / "checkpoints").exists()


def check_model(folder: Path) -> None:
    """UsageError where a folder holds neither a run nor a Hugging Face directory."""
    if not holds_run(folder) and not (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds no run and no model: there is no config.json in it")


def load(workdir: Path, scores: bool = False) -> tuple[Experiment, Any, int]:
    """As `load_trained`, with the run's own problems; a note on stderr where these have changed."""
    run, _ = run_and_step(workdir)
    task = read_task(load_config(run))
    ex, params, step = load_trained(workdir, scores, task)
    for name in changed_sources(load_record(run), ex.sources()):
        told = f"{name} has changed since {run} began: its own evaluations were on other problems"
        print(f"warning: {told}", file=sys.stderr)
    return ex, params, step


def load_trained(
    workdir: Path, scores: bool = False, task: Task | None = None
) -> tuple[Experiment, Any, int]:
    """Return (experiment, params, step) of the run in `workdir`, whatever mesh it trained on.

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
        params = merged(pretrained(ex), params)
    return ex, params, step


def asked_the_same(folder: Path, config: Any) -> tuple[Experiment, Any, int]:
    """As `load`, of a run or Hugging Face directory, but with the problems of another config.

    The model, its tokenizer and its mesh are its own, and so is what its chat template is given
    where the resolved config gives nothing of that name; all else is as the config says.
    """
    plain = dict(config if isinstance(config, dict) else config.to_dict())
    if holds_run(folder) or not (folder / "config.json").is_file():
        own, params, step = load_trained(folder)
        kept, tokenizer = own.config.to_dict(), own.tokenizer
    else:
        asked = defaults()
        asked.model.path = str(folder)
        kept, params, step = resolve(asked).to_dict(), None, 0
        tokenizer = load_tokenizer(folder)
    plain |= {name: kept[name] for name in ("model", "tokenizer", "mesh")}
    plain["chat_template_kwargs"] = kept["chat_template_kwargs"] | plain["chat_template_kwargs"]
    ex = build(FrozenFields(plain), tokenizer)  # "char" is of the task that it was built for
    return ex, pretrained(ex) if params is None else params, step


def load_model(folder: Path) -> Model:
    """The model of a run's folder or of a Hugging Face directory, adapters merged.

    UsageError where it is neither.
    """
    if holds_run(folder):
        ex, params, step = load_trained(folder)
        params = merge_adapters(ex.model.config, params)
        r = ex.config.rollout
        origin = f"{folder}, step {step}"
        return Model(ex.model, params, ex.tokenizer, r.max_tokens, origin, r.stop)
    check_model(folder)
    model = Decoder(read_config_file(folder))
    abstract = abstract_params(model, make_mesh())
    params = load_weights(folder, model.config, abstract)
    return Model(model, params, load_tokenizer(folder), None, str(folder))
