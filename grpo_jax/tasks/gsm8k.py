"""GSM8K (2110.14168): grade-school word problems of several steps, in the published JSON lines."""

import dataclasses
import re

from grpo_jax.rewards.registry import resolve
from grpo_jax.rewards.text import Reward
from grpo_jax.tasks.file_task import file_task, published_files, worked
from grpo_jax.tasks.problem import Problem, Task, judges_steps
from grpo_jax.tasks.records import NoAnswer, Record, dropping, read_table, text
from grpo_jax.tasks.steps import equations
from grpo_jax.tasks.templates import make_template

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_ANSWER = re.compile(r"(.*)####\s*(-?[\d,]*\d(?:\.\d+)?)\s*", re.DOTALL | re.ASCII)


@judges_steps
def gsm8k(
    path: str,
    heldout_path: str | None = None,
    reward: str | Reward = "math_verify",
    template: str = "none",
    system: str | None = None,
    unanswered: str = "drop",
) -> Task:
    """The problems of `path` and, held out, of `heldout_path`: records `question`, `answer`.

    Without heldout_path, `path` is a folder with train.jsonl and test.jsonl. Columns: `answer`, the
    number after ####, without commas; `solution`, the text before it, without <<calculator>> notes.
    A record whose answer is empty, or without anything after ####, is dropped with a warning, or
    `unanswered` is "refuse". Steps are `tasks.steps.equations`. ValueError names the file and line
    of a bad record.
    """
    form = make_template(template, system)
    accuracy = resolve(reward) if isinstance(reward, str) else reward
    files = published_files(path, heldout_path)
    dropped = dropping(unanswered)
    train, heldout = (read_table(file, _problem, dropped) for file in files)
    task = file_task(
        "gsm8k",
        train,
        heldout,
        files=files,
        accuracy=accuracy,
        template=form,
        solve=worked(form),
        dropped=dropped,
    )
    return dataclasses.replace(task, steps=equations)


def _problem(record: Record) -> Problem:
    worked_out = text(record, "answer", is_answer=True)
    match = _ANSWER.fullmatch(worked_out)
    if match is None:
        if not worked_out.rpartition("####")[2].strip():
            raise NoAnswer("column 'answer' has nothing after ####")
        ending = record["answer"][-40:]
        raise ValueError(f"column 'answer' ends in {ending!r}; valid: an ending '#### <number>'")
    solution = _CALCULATOR.sub("", match[1]).strip()
    answer = match[2].replace(",", "")
    return Problem(text(record, "question"), {"answer": answer, "solution": solution})
