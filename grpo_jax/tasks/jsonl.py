"""Problems from JSON lines: one object per line, with a prompt and any other columns."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_jax.rewards.registry import resolve, unknown
from grpo_jax.rewards.text import TAGS, Reward
from grpo_jax.tasks.problem import Problem, Task, is_heldout

RESERVED = ("prompts", "completions", "completion_ids")  # TRL's own arguments to a reward
NEED_ANSWER = ("exact_answer", "numeric_answer")


def jsonl(
    path: str,
    heldout_path: str | None = None,
    heldout_fraction: float = 0.1,
    prompt: str = "prompt",
    answer: str = "answer",
    solution: str = "solution",
    reward: str | Reward = "exact_answer",
) -> Task:
    """The problems of a file; `prompt`, `answer` and `solution` name its columns.

    Held out are those of `heldout_path`, or else `heldout_fraction` of the file by a hash of the
    prompt; a train problem whose prompt is held out is removed and counted in `Task.overlap`. The
    answer reaches the reward as the column `answer`; where every record has a solution, the task
    can solve. ValueError names the file and line of a bad record, and what is valid.
    """
    accuracy = resolve(reward) if isinstance(reward, str) else reward
    needed = answer if reward in NEED_ANSWER else None
    records = _read(Path(path), prompt, answer, needed)
    if heldout_path is not None:
        heldout = _read(Path(heldout_path), prompt, answer, needed)
        seen = {_key(p) for p in heldout}
        train = [p for p in records if _key(p) not in seen]
        overlap = len(records) - len(train)
    else:
        if not 0 < heldout_fraction < 1:
            raise ValueError(f"heldout_fraction={heldout_fraction}: valid: above 0, below 1")
        heldout = [p for p in records if is_heldout(_key(p), heldout_fraction)]
        train = [p for p in records if not is_heldout(_key(p), heldout_fraction)]
        overlap = 0
    for name, problems in (("train", train), ("held-out", heldout)):
        if not problems:
            raise ValueError(
                f"{path}: no {name} problems of {len(records)} records; "
                "valid: more records, another heldout_fraction or another heldout_path"
            )

    def solve(problem: Problem) -> str:
        return problem.columns[solution]

    every = [*train, *heldout]
    solvable = all(isinstance(p.columns.get(solution), str) for p in every)
    return Task(
        "jsonl", train, heldout, accuracy, solve if solvable else None, _symbols(every), overlap
    )


def _key(problem: Problem) -> str:
    return json.dumps(problem.prompt, sort_keys=True)


def _symbols(problems: Sequence[Problem]) -> tuple[str, ...] | None:
    """The tags, and every character of the prompts and text columns; None where there is chat."""
    if not all(isinstance(p.prompt, str) for p in problems):
        return None
    characters: set[str] = set()
    for problem in problems:
        for value in (problem.prompt, *problem.columns.values()):
            if isinstance(value, str | int | float):
                characters.update(str(value))
    return (*TAGS, *sorted(characters))


def _read(path: Path, prompt: str, answer: str, needed: str | None) -> list[Problem]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; valid: a file of JSON lines")
    problems = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            problems.append(_problem(line, prompt, answer, needed))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return problems


def _problem(line: bytes, prompt: str, answer: str, needed: str | None) -> Problem:
    record = _record(line)
    for column in filter(None, (prompt, needed)):
        if column not in record:
            raise ValueError(unknown("column", column, record))
    columns = {name: value for name, value in record.items() if name != prompt}
    if answer in columns:
        columns["answer"] = columns.pop(answer)
    for name in RESERVED:
        if name in columns:
            raise ValueError(f"column {name!r} is reserved for the rewards; valid: another name")
    return Problem(_prompt(prompt, record[prompt]), columns)


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}; valid: an object with the column prompt")
    return record


def _prompt(column: str, value: Any) -> str | list[dict[str, str]]:
    text = isinstance(value, str) and value != ""
    chat = isinstance(value, list) and value != [] and all(map(_is_message, value))
    if text or chat:
        return value
    raise ValueError(
        f"column {column!r} is {str(json.dumps(value))[:60]}; valid: text that is not empty, or a "
        'list of messages {"role": text, "content": text}'
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) for name in ("role", "content")
    )
