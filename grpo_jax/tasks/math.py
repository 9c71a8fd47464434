"""MATH (2103.03874): competition problems whose solutions box the answer, in published JSON."""

from grpo_jax.rewards.answers import boxed_answer
from grpo_jax.rewards.latex import same
from grpo_jax.rewards.registry import resolve
from grpo_jax.rewards.text import Reward
from grpo_jax.tasks.file_task import file_task, published_files, worked
from grpo_jax.tasks.problem import Problem, Task
from grpo_jax.tasks.records import NoAnswer, Record, dropping, read_folder, read_table, text
from grpo_jax.tasks.templates import make_template


def math(
    path: str,
    heldout_path: str | None = None,
    reward: str | Reward = "math_verify",
    template: str = "none",
    system: str | None = None,
    unanswered: str = "drop",
) -> Task:
    """The problems of `path` and, held out, of `heldout_path`: records `problem`, `solution`.

    Each is a file of JSON lines or a folder of .json files, one a problem; without heldout_path,
    `path` is a folder with train and test of either kind. Columns: `answer`, LaTeX, what the last
    box of the solution holds (of boxes with only "and", "or" or a comma between them, all);
    `solution`; `level` and `type` where the record has them. A record without a box, or with an
    empty one (two of the published 12,500), is dropped with a warning, or `unanswered` is "refuse".
    ValueError names the file, and the line, of a bad record.
    """
    form = make_template(template, system)
    accuracy = resolve(reward) if isinstance(reward, str) else reward
    files = published_files(path, heldout_path)
    dropped = dropping(unanswered)
    train, heldout = (
        (read_folder if f.is_dir() else read_table)(f, _problem, dropped) for f in files
    )
    return file_task(
        "math",
        train,
        heldout,
        files=files,
        accuracy=accuracy,
        template=form,
        solve=worked(form),
        dropped=dropped,
    )


def _problem(record: Record) -> Problem:
    solution = text(record, "solution", is_answer=True)
    answer = boxed_answer(solution)
    if not answer or same(answer, ""):  # spaces and styles only
        raise NoAnswer("column 'solution' has no answer; valid: one in \\boxed{...}")
    columns: Record = {"answer": answer, "solution": solution}
    columns |= {name: record[name] for name in ("level", "type") if name in record}
    return Problem(text(record, "problem"), columns)
