"""A resolved config made real: its task, tokenizer, model, algorithm and mesh."""

import dataclasses
import os
import sys
import tempfile
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray
from ml_collections import FrozenConfigDict

from grpo_jax.algorithms import Algorithm, needs_steps
from grpo_jax.console.progress import doing
from grpo_jax.engines import make_engine
from grpo_jax.engines.filters import Sampling
from grpo_jax.engines.stops import stop_table
from grpo_jax.environments import find_environment
from grpo_jax.errors import UsageError, described, excerpt
from grpo_jax.files import JsonMapping, at_home, fingerprint
from grpo_jax.models.config import ModelConfig, model_config
from grpo_jax.models.decoder import Decoder
from grpo_jax.rewards.evaluate import Rewarder
from grpo_jax.rewards.registry import resolve
from grpo_jax.rewards.text import Reward
from grpo_jax.rewards.turn import remainder
from grpo_jax.rollout.play import Player
from grpo_jax.rollout.reward_models import Reader
from grpo_jax.rollout.sources import check_source
from grpo_jax.sharding import make_mesh
from grpo_jax.tasks import JUDGED_STEPS, Problem, Task, make_task
from grpo_jax.tasks.problem import OBJECT
from grpo_jax.tokenizers import (
    TextTokenizer,
    char_tokenizer,
    kept_tokenizer,
    load_tokenizer,
    prefill,
    prompt_ids,
)
from grpo_jax.tokenizers.chat import unused
from grpo_jax.training.pretrained import Origin


class Answering(NamedTuple):
    """How problems are answered: by what, with which filters, and whose noise."""

    player: Player
    sampling: Sampling
    rng: PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What every program needs of a config.

    config     resolved
    functions  rewards that are objects, by the names that config.rewards has for them
    """

    config: FrozenConfigDict
    task: Task
    tokenizer: TextTokenizer
    model: Decoder
    algorithm: Algorithm
    mesh: Mesh
    functions: Mapping[str, Reward] = dataclasses.field(default_factory=dict)

    @property
    def source(self) -> Path | None:
        """The Hugging Face directory that the model comes from, if any."""
        path = self.config.model.path
        return at_home(path) if path else None

    @property
    def origin(self) -> Origin:
        """Where its parameters come from."""
        start = at_home(self.config.start) if self.config.start else None
        return Origin(model=self.model, mesh=self.mesh, source=self.source, start=start)

    def fits(self, problem: Problem, helps: str = "") -> bool:
        """Whether the prompt is to be used: over-long ones are not where they are dropped.

        UsageError where one is refused instead (`helps` as `too_long` has it), and ValueError where
        it cannot be encoded.
        """
        try:
            tokens = len(prompt_ids(self.tokenizer, problem.prompt))
        except ValueError as error:
            raise ValueError(
                f"{named(problem)}: prompt {excerpt(problem.prompt)}: {error}"
            ) from error
        if tokens <= self.config.prompt_length:
            return True
        if self.config.overlong_prompts == "refuse":
            raise UsageError(too_long(self.config, problem, "prompt", tokens, helps=helps))
        return False

    def solution(self, problem: Problem) -> str:
        """What a problem's prompt leaves to write of its worked solution (`turn.remainder`)."""
        assert self.task.solve is not None
        return remainder(prefill(self.tokenizer, problem.prompt), self.task.solve(problem))

    def sources(self) -> dict[str, str]:
        """The fingerprints of the files that the task was read from, by file."""
        return {str(file): fingerprint(file) for file in self.task.files}

    def answering(self, temperature: float, top_p: float = 1.0) -> Answering:
        """How problems are answered outside of training: by none of its filters, or its noise."""
        sampling = self.sampling(temperature=temperature, top_k=0, top_p=top_p, min_p=0.0)
        return Answering(self.player, sampling, jax.random.key((self.config.seed + 1) % 2**32))

    def sampling(self, **changes: float) -> Sampling:
        """How training samples, with changes."""
        r = self.config.rollout
        names = ("max_tokens", "temperature", "top_k", "top_p", "min_p")
        chosen = {k: getattr(r, k) for k in names}
        return Sampling(stop=self.tokenizer.stop, **(chosen | changes))

    @cached_property
    def player(self) -> Player:
        """What plays the task's problems; ValueError for an engine or environment that
        there is not."""
        r, stops = self.config.rollout, None
        if r.stop:
            width = self.model.config.vocab_size
            stops = jnp.asarray(stop_table(self.tokenizer, r.stop, width))
        return Player(
            engine=make_engine(r.engine, self.model, stops),
            tokenizer=self.tokenizer,
            mesh=self.mesh,
            prompt_length=self.config.prompt_length,
            prompt_bucket=r.prompt_bucket,
            stop=r.stop,
            environment=find_environment(r.environment),
        )

    def reward(self, name: str) -> Reward:
        """The reward of this name; ValueError as `registry.resolve`."""
        return self.functions.get(name) or resolve(name, self.task.accuracy)

    @property
    def reader(self) -> Reader:
        """How a reward model of this config reads."""
        c = self.config
        return Reader(
            tokenizer=self.tokenizer,
            mesh=self.mesh,
            judged=c.task.get("judged", "whole"),
            prompt_length=c.prompt_length,
            prompt_bucket=c.rollout.prompt_bucket,
            max_tokens=c.rollout.max_tokens,
        )

    def rewarder(self, names: tuple[str, ...]) -> Rewarder:
        """The rewards of these names, ready to be called in parallel."""
        functions = {name: self.reward(name) for name in names}
        workers = self.config.reward_workers or os.cpu_count() or 1
        with doing("starting the rewards' processes"):
            return Rewarder(
                functions,
                workers=workers,
                timeout_s=self.config.reward_timeout,
                prefill=partial(prefill, self.tokenizer),
            )


def named(problem: Problem) -> str:
    """A problem's file and record, or what to say of one that is not from a file."""
    return problem.where or "a problem of the task"


def too_long(
    config: FrozenConfigDict,
    problem: Problem,
    name: str,
    tokens: int,
    longest: int = 0,
    helps: str = "",
) -> str:
    """One line on a "prompt" or "worked solution" of too many tokens, and on what helps.

    longest  tokens of the longest one that is known; 0 = this one's
    helps    what does where the config is not the command line's to change; "" = its flags
    """
    prompt, longest = excerpt(problem.prompt), max(tokens, longest)
    what, field, limit = f"{name} {prompt}", "prompt_length", config.prompt_length
    if name != "prompt":
        what, field = f"{name} of {prompt}", "rollout.max_tokens"
        limit = config.rollout.max_tokens
    flags = f"--config.{field}={longest}, or --config.overlong_prompts=drop to leave such"
    helps = helps or f"{flags} problems out"
    return f"{named(problem)}: the {what} has {tokens} tokens; valid: 1 to {limit}, {helps}"


def build(
    config: FrozenConfigDict,
    tokenizer: TextTokenizer | None = None,
    task: Task | None = None,
    functions: Mapping[str, Reward] | None = None,
) -> Experiment:
    """The experiment of a resolved config; ValueError, naming the field, where it cannot be.

    tokenizer  None = that of the run in config.start, or as config.tokenizer says
    task       None = as config.task says
    functions  rewards that are objects, by name
    """
    if config.compilation_cache:
        _keep_compiled(config.compilation_cache)
    with doing(f"reading the task {config.task.name!r} and the tokenizer"):
        task = task or read_task(config)
        tokenizer = tokenizer or _tokenizer(config, task)
    tokenizer = with_kwargs(tokenizer, config.chat_template_kwargs.to_dict())
    model = _model(config, tokenizer)
    chosen = {f.name: config.algorithm[f.name] for f in dataclasses.fields(Algorithm)}
    mesh = make_mesh(**config.mesh.to_dict())
    algorithm = Algorithm(**chosen)
    if needs_steps(algorithm) and task.steps is None:
        raise UsageError(
            f"config.algorithm.advantage={algorithm.advantage!r} needs a task that judges single "
            f"steps, which {task.name!r} does not; valid: {', '.join(JUDGED_STEPS)}"
        )
    ex = Experiment(config, task, tokenizer, Decoder(model), algorithm, mesh, functions or {})
    try:
        ex.player  # noqa: B018  # the engine must be there, and fit the model
        check_source(config.rollout.source, algorithm)
    except ValueError as error:
        raise UsageError(f"config.rollout: {error}") from error
    return ex


def _keep_compiled(folder: str) -> None:
    """Keep compiled programs in a folder, or warn: without it they are only compiled once more."""
    try:
        cache = at_home(folder)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        message = (
            f"config.compilation_cache={folder!r}: {error.strerror}; compiled programs are not kept"
        )
        print(f"warning: {message}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _model(config: FrozenConfigDict, tokenizer: TextTokenizer) -> ModelConfig:
    fields = config.model.to_dict()
    del fields["path"]
    fields["vocab_size"] = fields["vocab_size"] or tokenizer.vocab_size
    if fields["vocab_size"] < tokenizer.vocab_size:
        raise ValueError(
            f"config.tokenizer={config.tokenizer!r} has {tokenizer.vocab_size} tokens, but the "
            f"model {fields['vocab_size']}; valid: the model's own tokenizer"
        )
    return model_config(fields)


def read_task(config: FrozenConfigDict) -> Task:
    """The task of a resolved config; UsageError for a wrong option, or a file that is not there."""
    if OBJECT in config.task:
        raise UsageError(
            f"config.task: {config.task.name!r} was given as an object; valid: give it again, as "
            "task="
        )
    try:
        return make_task(**config.task.to_dict())
    except OSError as error:
        raise UsageError(f"config.task: {described(error)}") from error
    except (TypeError, ImportError) as error:  # a wrong option, an extra
        raise UsageError(f"config.task: {error}") from error


def with_kwargs(
    tokenizer: TextTokenizer, given: JsonMapping, name: str = "config.chat_template_kwargs"
) -> TextTokenizer:
    """The tokenizer whose chat template is given these too; a note on stderr of those unread."""
    template, notes = tokenizer.chat_template, []
    if given:
        notes = ["no chat template is there"] if template is None else unused(template, [*given])
    for line in notes:
        print(f"note: {name}: {line}", file=sys.stderr)
    return dataclasses.replace(tokenizer, template_kwargs={**tokenizer.template_kwargs, **given})


def _tokenizer(config: FrozenConfigDict, task: Task) -> TextTokenizer:
    started = _started_tokenizer(config.start) if config.start else None
    if config.tokenizer != "char":
        try:
            chosen = load_tokenizer(config.tokenizer)
        except OSError as error:
            raise UsageError(f"config.tokenizer: {described(error)}") from error
        if started is not None and started.backend.get_vocab() != chosen.backend.get_vocab():
            raise UsageError(
                f"config.tokenizer={config.tokenizer!r} has another vocabulary than that of the "
                f"run in config.start, {config.start}; valid: {config.start}/tokenizer"
            )
        return chosen
    if started is not None:
        return started
    if task.symbols is None:
        raise ValueError(
            f"config.tokenizer='char' needs a task with known symbols, which {task.name!r} is not; "
            "give a directory or file of a Hugging Face tokenizer"
        )
    return char_tokenizer(task.symbols)


def _started_tokenizer(start: str) -> TextTokenizer:
    """The tokenizer of the run in config.start, whose ids its model knows."""
    folder = at_home(start)
    for name in ("checkpoints", "tokenizer"):
        if not (folder / name).is_dir():
            raise UsageError(f"config.start: {folder} holds no run: there is no {name}/ in it")
    return kept_tokenizer(folder / "tokenizer")
