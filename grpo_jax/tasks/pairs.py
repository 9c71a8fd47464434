"""Pairs of completions of one prompt, the first preferred: what a reward model learns from."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from grpo_jax.rewards.text import Completion, completion_text
from grpo_jax.tasks.file_task import file_task, key
from grpo_jax.tasks.jsonl import checked_prompt
from grpo_jax.tasks.problem import Problem, Task, is_heldout
from grpo_jax.tasks.records import Record, read_table, text
from grpo_jax.tasks.templates import make_template


def pairs(
    path: str,
    heldout_fraction: float = 0.1,
    prompt: str = "prompt",
    chosen: str = "chosen",
    rejected: str = "rejected",
    template: str = "none",
    system: str | None = None,
) -> Task:
    """The pairs of a file, .parquet or JSON lines; the options name its columns.

    Held out are `heldout_fraction` of them by a hash of the prompt, so no prompt is on both sides.
    The worked solution is the chosen completion, and a completion is right that equals it.
    ValueError names the file and line of a bad record, and what is valid.
    """
    if not 0 < heldout_fraction < 1:
        raise ValueError(f"heldout_fraction={heldout_fraction}: valid: above 0, below 1")
    names = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for problem in read_table(Path(path), partial(_pair, names=names, chat=template == "none")):
        sides[is_heldout(key(problem), heldout_fraction)].append(problem)
    return file_task(
        "pairs",
        *sides,
        path=path,
        accuracy=_as_chosen,
        template=make_template(template, system),
        solve=lambda problem: problem.columns["chosen"],
    )


def _pair(record: Record, names: dict[str, str], chat: bool) -> Problem:
    two = {name: text(record, names[name]) for name in ("chosen", "rejected")}
    if two["chosen"] == two["rejected"]:
        raise ValueError(f"columns {names['chosen']!r} and {names['rejected']!r} are the same text")
    return Problem(checked_prompt(names["prompt"], record.get(names["prompt"]), not chat), two)


def _as_chosen(
    prompts: Sequence[Any], completions: Sequence[Completion], chosen: Sequence[str], **columns: Any
) -> list[float]:
    return [float(completion_text(c) == text) for c, text in zip(completions, chosen, strict=True)]
