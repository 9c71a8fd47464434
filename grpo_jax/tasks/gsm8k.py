"""GSM8K (2110.14168): grade-school word problems of several steps, in the published JSON lines."""

import dataclasses
import re

from grpo_jax.rewards.registry import resolve
from grpo_jax.rewards.text import Reward
from grpo_jax.tasks.file_task import file_task, published_files, worked
from grpo_jax.tasks.problem import Problem, Task
from grpo_jax.tasks.records import Record, read_table, text
from grpo_jax.tasks.steps import equations
from grpo_jax.tasks.templates import make_template

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_ANSWER = re.compile(r"(.*)####\s*(-?[\d,]*\d(?:\.\d+)?)\s*", re.DOTALL | re.ASCII)


def gsm8k(
    path: str,
    heldout_path: str | None = None,
    reward: str | Reward = "math_verify",
    template: str = "none",
    system: str | None = None,
) -> Task:
    """The problems of `path` and, held out, of `heldout_path`: records `question`, `answer`.

    Without heldout_path, `path` is a folder with train.jsonl and test.jsonl. Columns: `answer`, the
    number after ####, without commas; `solution`, the text before it, without <<calculator>> notes.
    Steps are `tasks.steps.equations`. ValueError names the file and line of a bad record.
    """
    form = make_template(template, system)
    accuracy = resolve(reward) if isinstance(reward, str) else reward
    files = published_files(path, heldout_path)
    train, heldout = (read_table(file, _problem) for file in files)
    task = file_task(
        "gsm8k",
        train,
        heldout,
        path=path,
        accuracy=accuracy,
        template=form,
        solve=worked(form),
    )
    return dataclasses.replace(task, steps=equations)


def _problem(record: Record) -> Problem:
    match = _ANSWER.fullmatch(text(record, "answer"))
    if match is None:
        ending = record["answer"][-40:]
        raise ValueError(f"column 'answer' ends in {ending!r}; valid: an ending '#### <number>'")
    solution = _CALCULATOR.sub("", match[1]).strip()
    answer = match[2].replace(",", "")
    return Problem(text(record, "question"), {"answer": answer, "solution": solution})
