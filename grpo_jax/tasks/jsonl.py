"""Problems from JSON lines or parquet: one record each, with a prompt and any other columns."""

import functools
from pathlib import Path
from typing import Any

from grpo_jax.rewards.registry import resolve, unknown
from grpo_jax.rewards.text import Reward
from grpo_jax.tasks.file_task import file_task, key
from grpo_jax.tasks.problem import Problem, Task, is_heldout
from grpo_jax.tasks.records import Record, read_table, shown
from grpo_jax.tasks.templates import make_template

RESERVED = ("prompts", "completions", "completion_ids")  # TRL's own arguments to a reward
NEED_ANSWER = ("exact_answer", "numeric_answer", "last_number", "math_verify")


def jsonl(
    path: str,
    heldout_path: str | None = None,
    heldout_fraction: float = 0.1,
    prompt: str = "prompt",
    answer: str = "answer",
    solution: str = "solution",
    reward: str | Reward = "exact_answer",
    template: str = "none",
    system: str | None = None,
) -> Task:
    """The problems of a file, .parquet or JSON lines; `prompt`, `answer`, `solution` name columns.

    Held out are those of `heldout_path`, or else `heldout_fraction` of the file by a hash of the
    prompt, 1 for a benchmark that nothing is to be trained on; a train problem whose prompt is held
    out is removed and counted in `Task.overlap`. The answer reaches the reward as the column
    `answer`; where every record has a solution, the task can solve. ValueError names the file and
    line of a bad record, and what is valid.
    """
    form = make_template(template, system)
    accuracy = resolve(reward) if isinstance(reward, str) else reward
    needed = (prompt, answer) if reward in NEED_ANSWER else (prompt,)
    make = functools.partial(
        _problem, prompt=prompt, answer=answer, needed=needed, text_only=template != "none"
    )
    train = read_table(Path(path), make)
    if heldout_path is not None:
        heldout = read_table(Path(heldout_path), make)
    else:
        if not 0 < heldout_fraction <= 1:
            raise ValueError(f"heldout_fraction={heldout_fraction}: valid: above 0, up to 1")
        sides: tuple[list[Problem], list[Problem]] = ([], [])
        for problem in train:
            sides[is_heldout(key(problem), heldout_fraction)].append(problem)
        train, heldout = sides

    def solve(problem: Problem) -> str:
        return problem.columns[solution]

    solvable = all(isinstance(p.columns.get(solution), str) for p in [*train, *heldout])
    return file_task(
        "jsonl",
        train,
        heldout,
        path=path,
        accuracy=accuracy,
        template=form,
        solve=solve if solvable else None,
        benchmark=heldout_path is None and heldout_fraction == 1,
    )


def _problem(
    record: Record, prompt: str, answer: str, needed: tuple[str, ...], text_only: bool
) -> Problem:
    for column in needed:
        if column not in record:
            raise ValueError(unknown("column", column, record))
    columns = {name: value for name, value in record.items() if name != prompt}
    if answer in columns:
        columns["answer"] = columns.pop(answer)
    for name in RESERVED:
        if name in columns:
            raise ValueError(f"column {name!r} is reserved for the rewards; valid: another name")
    return Problem(checked_prompt(prompt, record[prompt], text_only), columns)


def checked_prompt(column: str, value: Any, text_only: bool) -> str | list[dict[str, str]]:
    """A prompt, text or chat messages (not where text_only); ValueError where it is neither."""
    text = isinstance(value, str) and value != ""
    chat = isinstance(value, list) and value != [] and all(map(_is_message, value))
    if chat and text_only:
        raise ValueError(
            f"column {column!r} holds chat messages; valid: text, or the option template='none'"
        )
    if text or chat:
        return value
    raise ValueError(
        f"column {column!r} is {shown(value)}; valid: text that is not empty, or a "
        'list of messages {"role": text, "content": text}'
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) for name in ("role", "content")
    )
