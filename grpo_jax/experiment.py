"""A resolved config made real: its task, tokenizer, model, algorithm and mesh."""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict
from tokenizers import Tokenizer

from grpo_jax.algorithms import Algorithm
from grpo_jax.config import UsageError
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.decoder import Decoder
from grpo_jax.rewards.evaluate import Rewarder
from grpo_jax.rewards.registry import resolve
from grpo_jax.rollout.filters import Sampling
from grpo_jax.rollout.speculative import check_drafts
from grpo_jax.sharding import make_mesh
from grpo_jax.tasks import Problem, Task, make_task
from grpo_jax.tokenizers import EOS, PAD, char_tokenizer, load_tokenizer, prompt_ids


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What every program needs of a config; `config` is the resolved config."""

    config: FrozenConfigDict
    task: Task
    tokenizer: Tokenizer
    model: Decoder
    algorithm: Algorithm
    mesh: Mesh

    @cached_property
    def pad(self) -> int:
        """Id of the padding token."""
        return self.tokenizer.token_to_id(PAD) or 0

    @cached_property
    def stop(self) -> tuple[int, ...]:
        """Ids that end a completion."""
        eos = self.tokenizer.token_to_id(EOS)
        if eos is None:
            raise ValueError(f"config.tokenizer={self.config.tokenizer!r} has no token {EOS}")
        return (eos,)

    def fits(self, problem: Problem) -> bool:
        """Whether the prompt is to be used: over-long ones are not where they are dropped.

        Where they are refused instead, encoding one says so.
        """
        if self.config.overlong_prompts == "refuse":
            return True
        return len(prompt_ids(self.tokenizer, problem.prompt)) <= self.config.prompt_length

    def sampling(self, **changes: Any) -> Sampling:
        """How training samples, with changes."""
        r = self.config.rollout
        names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "speculative")
        chosen = {k: getattr(r, k) for k in names}
        return Sampling(stop=self.stop, **(chosen | changes))

    def rewarder(self, names: tuple[str, ...]) -> Rewarder:
        """The rewards of these names, ready to score in parallel."""
        functions = {name: resolve(name, self.task.accuracy) for name in names}
        c = self.config
        return Rewarder(functions, workers=c.reward_workers, timeout_s=c.reward_timeout)


def build(config: FrozenConfigDict) -> Experiment:
    """The experiment of a resolved config; ValueError, naming the field, where it cannot be."""
    if config.compilation_cache:
        cache = Path(config.compilation_cache).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    task = _task(config)
    tokenizer = _tokenizer(config, task)
    model = ModelConfig(vocab_size=tokenizer.get_vocab_size(), **config.model.to_dict())
    chosen = {f.name: config.algorithm[f.name] for f in dataclasses.fields(Algorithm)}
    mesh = make_mesh(**config.mesh.to_dict())
    if config.rollout.speculative:
        check_drafts(Decoder(model))
    return Experiment(config, task, tokenizer, Decoder(model), Algorithm(**chosen), mesh)


def _task(config: FrozenConfigDict) -> Task:
    try:
        return make_task(**config.task.to_dict())
    except (TypeError, OSError, ImportError) as error:  # a wrong option, a file, an extra
        raise UsageError(f"config.task: {error}") from error


def _tokenizer(config: FrozenConfigDict, task: Task) -> Tokenizer:
    if config.tokenizer != "char":
        try:
            return load_tokenizer(config.tokenizer)
        except OSError as error:
            raise UsageError(f"config.tokenizer: {error}") from error
    if task.symbols is None:
        raise ValueError(
            f"config.tokenizer='char' needs a task with known symbols, which {task.name!r} is not; "
            "give the path of a tokenizer.json"
        )
    return char_tokenizer(task.symbols)
