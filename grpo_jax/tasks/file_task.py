"""A task of problems read from files: its two splits disjoint, its prompts in a template."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from grpo_jax.files import at_home
from grpo_jax.rewards.columns import misread, path_of
from grpo_jax.rewards.registry import EXTRAS
from grpo_jax.rewards.text import TAGS, Reward
from grpo_jax.tasks.problem import Problem, Task
from grpo_jax.tasks.records import Dropped, warn_of_dropped
from grpo_jax.tasks.templates import Template


def file_task(
    name: str,
    train: Sequence[Problem],
    heldout: Sequence[Problem],
    *,
    files: Sequence[Path],
    accuracy: Reward,
    template: Template,
    solve: Callable[[Problem], str] | None,
    benchmark: bool = False,
    dropped: Dropped = None,
) -> Task:
    """The task of these problems, whose prompts the template has yet to fill.

    A train problem whose prompt is held out is removed and counted in `Task.overlap`. A warning
    names the records that were `dropped` for lack of an answer, and another the answers that the
    reward math_verify reads as nothing. ValueError names the first of `files` where a side is
    empty, except a benchmark's train problems, and the first record that the reward cannot judge.
    """
    _refuse_misread(accuracy, [*train, *heldout])
    warn_of_unread(accuracy, [*train, *heldout])
    warn_of_dropped(dropped, len(train) + len(heldout) + len(dropped or ()))
    seen = {key(p) for p in heldout}
    kept = [p for p in train if key(p) not in seen]
    for side, problems in (("train", kept), ("held-out", heldout)):
        if not problems and not (benchmark and side == "train"):
            raise ValueError(
                f"{files[0]}: no {side} problems of {len(train) or len(heldout)} records; "
                "valid: more records, or another split"
            )
    learned, asked = ([_filled(p, template) for p in side] for side in (kept, heldout))
    symbols = _symbols([*learned, *asked], solve)
    overlap = len(train) - len(kept)
    return Task(name, learned, asked, accuracy, solve, symbols, overlap, files=tuple(files))


def worked(template: Template) -> Callable[[Problem], str]:
    """The columns `solution` and `answer` of a problem as a completion in the template's form."""
    return lambda p: template.solution(p.columns["solution"], p.columns["answer"])


def published_files(path: str, heldout_path: str | None) -> tuple[Path, Path]:
    """The two given, or else train and test in the folder `path`: .jsonl files or folders.

    FileNotFoundError names the folder where it has no such pair.
    """
    if heldout_path is not None:
        return at_home(path), at_home(heldout_path)
    for suffix in (".jsonl", ""):
        train, test = (at_home(path) / f"{side}{suffix}" for side in ("train", "test"))
        if train.exists() and test.exists():
            return train, test
    raise FileNotFoundError(
        f"{path}: no train.jsonl and test.jsonl; valid: a folder with both, or a path and a "
        "heldout_path"
    )


def key(problem: Problem) -> str:
    """What identifies a problem, for the split: the prompt, before a template fills it."""
    return json.dumps(problem.prompt, sort_keys=True)


def _refuse_misread(accuracy: Reward, problems: Sequence[Problem]) -> None:
    wrong = ((p, misread(accuracy, p.columns)) for p in problems)
    if found := [(p, why) for p, why in wrong if why]:
        problem, why = found[0]
        raise ValueError(
            f"{problem.where}: {why} (the first of {len(found)} among {len(problems)} problems; "
            "the option `reward` may name another)"
        )


def warn_of_unread(reward: Reward, problems: Sequence[Problem]) -> None:
    """One warning, on stderr, of the answers that `reward` reads as nothing: math_verify may."""
    if path_of(reward) != EXTRAS["math_verify"][0]:
        return
    from grpo_jax.rewards.math import unread  # of an extra

    answered = [p for p in problems if p.columns.get("answer")]
    golds = [str(p.columns["answer"]).strip() for p in answered]
    if none := unread(golds):
        first = {gold: p.where for gold, p in reversed([*zip(golds, answered, strict=True)])}
        different = list(dict.fromkeys(none))
        named = ", ".join(f"{gold!r} ({first[gold]})" for gold in different[:3])
        print(
            f"warning: math_verify reads {len(none)} of {len(golds)} answers as nothing, so that "
            f"only the same text is right: {named}" + (" ..." if len(different) > 3 else ""),
            file=sys.stderr,
        )


def _filled(problem: Problem, template: Template) -> Problem:
    if not isinstance(problem.prompt, str):  # chat messages as they come
        return problem
    return dataclasses.replace(problem, prompt=template.prompt(problem.prompt))


def _symbols(
    problems: Sequence[Problem], solve: Callable[[Problem], str] | None
) -> tuple[str, ...] | None:
    """The tags, and every character of prompts, columns and solutions; None where there is chat."""
    if not all(isinstance(p.prompt, str) for p in problems):
        return None
    characters: set[str] = set()
    for problem in problems:
        characters.update(solve(problem) if solve else "")
        for value in (problem.prompt, *problem.columns.values()):
            if isinstance(value, str | int | float):
                characters.update(str(value))
    return (*TAGS, *sorted(characters))
