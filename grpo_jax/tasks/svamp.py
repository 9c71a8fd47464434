"""SVAMP (2103.07191): one-step word problems with variations, in the published JSON list."""

import re

from grpo_jax.files import at_home
from grpo_jax.rewards.registry import resolve
from grpo_jax.rewards.text import Reward
from grpo_jax.tasks.file_task import file_task, worked
from grpo_jax.tasks.problem import Problem, Task
from grpo_jax.tasks.records import NoAnswer, Record, dropping, is_blank, read_list, shown, text
from grpo_jax.tasks.templates import make_template

_ID = re.compile(r"chal-(\d+)", re.ASCII)


def svamp(
    path: str,
    heldout_first: int = 701,
    heldout_last: int = 1000,
    reward: str | Reward = "last_number",
    template: str = "none",
    system: str | None = None,
    unanswered: str = "drop",
) -> Task:
    """The problems of SVAMP.json, or of the folder that holds it; held out by ID, ends included.

    The default holds out chal-701 to chal-1000, the published file's last 300. Variants of one
    problem are scattered over that file, so any split leaks a little. Columns: `answer`,
    `solution` (the published equation, which for chal-680 has another value), `type`. A record
    whose answer is null or empty is dropped with a warning, or `unanswered` is "refuse". ValueError
    names the file and record, from 1, of a bad record.
    """
    form = make_template(template, system)
    accuracy = resolve(reward) if isinstance(reward, str) else reward
    file = at_home(path)
    file = file / "SVAMP.json" if file.is_dir() else file
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    dropped = dropping(unanswered)
    for number, problem in read_list(file, _numbered, dropped):
        sides[heldout_first <= number <= heldout_last].append(problem)
    return file_task(
        "svamp",
        *sides,
        files=[file],
        accuracy=accuracy,
        template=form,
        solve=worked(form),
        dropped=dropped,
    )


def _numbered(record: Record) -> tuple[int, Problem]:
    match = _ID.fullmatch(text(record, "ID"))
    if match is None:
        raise ValueError(f"column 'ID' is {record['ID']!r}; valid: chal-<number>")
    value = record.get("Answer")
    if "Answer" in record and is_blank(value):
        raise NoAnswer(f"column 'Answer' is {shown(value)}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"column 'Answer' is {value!r}; valid: a number")
    answer = _plain(str(value))
    equation = _plain(text(record, "Equation")).removeprefix("( ").removesuffix(" )")
    columns = {"answer": answer, "solution": f"{equation} = {answer}.", "type": record.get("Type")}
    return int(match[1]), Problem(f"{text(record, 'Body')} {text(record, 'Question')}", columns)


def _plain(numbers: str) -> str:
    """Text in which whole numbers have no decimals: "76.0 - 25.5" becomes "76 - 25.5"."""
    return re.sub(r"(\d)\.0\b", r"\1", numbers)
