"""Any reasoning_gym dataset, with the library's own generator and scorer."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.errors import unknown
from grpo_jax.files import Json
from grpo_jax.rewards.text import TAGS, Completion, extract_answer
from grpo_jax.tasks.problem import Problem, Prompt, Task, is_heldout

HELDOUT = 0.125  # fraction of the questions
CACHED = 2048  # items kept: some generators take seconds for each
MAX_PROBES = 1000
PROBES_PER_HELDOUT = 128  # all on the train side has probability 4e-8

# Printable ASCII and Latin-1, and the marks that the library's questions are drawn with. One fixed
# set, so that a model can move between datasets; datasets of emoji or foreign prose need more.
_ASCII = "\n" + "".join(map(chr, range(32, 127)))
_LATIN = "".join(map(chr, [*range(0xA1, 0xAD), *range(0xAE, 0x100)]))
_MARKS = "‘’“”•…™€–—→←↑↓↔∧∨¬⊕∫─│┌┐└┘├▀▄█▌▐░▪✅❌❔"  # noqa: RUF001
SYMBOLS = (*TAGS, *dict.fromkeys(_ASCII + _LATIN + _MARKS))


@dataclass(frozen=True)
class Questions:
    """One side of a dataset's questions, split by a hash of the question.

    Index i is the first of the items i, i + step, i + 2 step, ... (modulo `items`) whose question
    is on this side; where step is the size, no two indices share an item.
    """

    item: Callable[[int], Json]
    items: int
    size: int
    step: int
    heldout: bool

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Problem:
        if not 0 <= index < self.size:
            raise IndexError(f"problem {index} of {self.size}")
        probes = min(self.items // self.step, MAX_PROBES)
        for probe in range(probes):
            entry = self.item((index + probe * self.step) % self.items)
            if is_heldout(entry["question"], HELDOUT) == self.heldout:
                return Problem(entry["question"], {"answer": entry["answer"], "entry": entry})
        side = "held-out" if self.heldout else "train"
        raise ValueError(
            f"no {side} question in {probes} items: these settings of the dataset give too few "
            "different questions; valid: settings that give more"
        )


def reasoning_gym(
    dataset: str = "chain_sum",
    heldout_size: int = 128,
    train_size: int = 100_000,
    seed: int = 0,
    **config: object,
) -> Task:
    """The questions of `dataset`, unchanged; `config` holds the fields of its own configuration.

    The scorer gets what the last <answer>…</answer> holds, else the stripped completion; a solution
    is the bare answer, where the dataset has one. ValueError names an unknown dataset or what the
    library refuses, TypeError an unknown field, ModuleNotFoundError the extra to install.
    """
    if min(heldout_size, train_size) < 1:
        raise ValueError(f"sizes: got train {train_size}, held-out {heldout_size}; valid: >= 1")
    items = max(train_size, PROBES_PER_HELDOUT * heldout_size)
    data = _create(dataset, config | {"size": items, "seed": seed})
    item = functools.lru_cache(CACHED)(data.__getitem__)
    return Task(
        f"reasoning_gym/{dataset}",
        train=Questions(item, items, train_size, step=1, heldout=False),
        heldout=Questions(item, items, heldout_size, step=heldout_size, heldout=True),
        accuracy=functools.partial(_accuracy, data.score_answer),
        solve=solve if isinstance(item(0)["answer"], str) else None,
        symbols=SYMBOLS,
    )


def solve(problem: Problem) -> str:
    """The bare answer; ValueError where the dataset gives none for this question."""
    answer = problem.columns["answer"]
    if not isinstance(answer, str):
        raise ValueError(f"the dataset gives no answer to {problem.prompt!r}")
    return answer


def _create(dataset: str, config: Json) -> Any:
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"task 'reasoning_gym' needs an extra: pip install 'grpo_jax[reasoning_gym]' ({error})"
        ) from error
    if dataset not in DATASETS:
        raise ValueError(unknown("reasoning_gym dataset", dataset, DATASETS))
    fields = {field.name for field in dataclasses.fields(DATASETS[dataset][1])}
    for name in config:
        if name not in fields:
            own = fields - {"seed", "size"} | {"heldout_size", "train_size"}
            raise TypeError(f"reasoning_gym dataset {dataset!r}: {unknown('field', name, own)}")
    try:
        return create_dataset(dataset, **config)
    except (AssertionError, ValueError, TypeError) as error:
        raise ValueError(
            f"reasoning_gym dataset {dataset!r} refuses its configuration {config}: {error}"
        ) from error


def _accuracy(
    score: Callable[[str, Json], float],
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    entry: Sequence[Json],
    **columns: object,
) -> list[float]:
    """The library's own score of each extracted answer."""
    return [_score(score, extract_answer(c), e) for c, e in zip(completions, entry, strict=True)]


def _score(score: Callable[[str, Json], float], answer: str, entry: Json) -> float:
    try:
        return float(score(answer, entry))
    except Exception as error:  # several of the library's scorers raise on text they cannot parse
        warnings.warn(  # once a process, by Python's own filter
            f"a scorer of reasoning_gym raised {type(error).__name__}; such answers count as wrong",
            stacklevel=2,
        )
        return 0.0
