"""Another task with worked solutions from a file, such as a teacher's right completions."""

import dataclasses

from grpo_jax.files import at_home
from grpo_jax.tasks.file_task import key, warn_of_unread
from grpo_jax.tasks.jsonl import checked_prompt
from grpo_jax.tasks.problem import Options, Problem, Task
from grpo_jax.tasks.records import Record, dropping, read_table, text, warn_of_dropped


def solved(path: str, of: Options, unanswered: str = "drop") -> Task:
    """The task with the options `of`, trained on the records of `path` instead of its problems.

    A record has the columns prompt and solution, and what the task's own problems have: so does
    kept.jsonl of rejection sampling. Held-out problems, accuracy and symbols are the task's own;
    records whose prompt is held out are removed and counted in `Task.overlap`. One whose solution
    is null or blank is dropped with a warning, or `unanswered` is "refuse". ValueError names the
    file and line of a bad record.
    """
    from grpo_jax.tasks import make_task

    task = make_task(**of)
    asked = {key(task.heldout[i]) for i in range(len(task.heldout))}
    dropped = dropping(unanswered)
    records = read_table(at_home(path), _problem, dropped)
    warn_of_dropped(dropped, len(records) + len(dropped or ()))
    warn_of_unread(task.accuracy, records)
    train = [problem for problem in records if key(problem) not in asked]
    if not train:
        raise ValueError(f"{path}: no problem of {len(records)} records is one to train on")
    return dataclasses.replace(
        task,
        name="solved",
        train=train,
        solve=lambda problem: problem.columns["solution"],
        overlap=len(records) - len(train),
        files=(at_home(path), *task.files),
    )


def _problem(record: Record) -> Problem:
    columns = {name: value for name, value in record.items() if name != "prompt"}
    columns["solution"] = text(record, "solution", is_answer=True)
    answers = (columns.get("answer"), columns["solution"])
    return Problem(checked_prompt("prompt", record.get("prompt"), False, answers), columns)
