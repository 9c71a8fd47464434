"""Problems from JSON lines or parquet: one record each, with a prompt and any other columns."""

import functools
import json
from collections.abc import Callable, Iterable

from grpo_jax.errors import unknown
from grpo_jax.files import at_home
from grpo_jax.rewards.cases import parse_cases
from grpo_jax.rewards.columns import path_of
from grpo_jax.rewards.registry import EXTRAS, REWARDS, resolve
from grpo_jax.rewards.text import Reward
from grpo_jax.tasks.conversations import is_answer
from grpo_jax.tasks.file_task import file_task, key
from grpo_jax.tasks.problem import Problem, Prompt, Task, is_heldout
from grpo_jax.tasks.records import Dropped, NoAnswer, Record, dropping, is_blank, read_table, shown
from grpo_jax.tasks.templates import make_template

RESERVED = ("prompts", "completions", "completion_ids", "prefill")  # a reward's own arguments
CONVERSATIONS = ("messages", "conversation", "conversations")  # columns of whole ones, as TRL's
NEED_ANSWER = ("exact_answer", "numeric_answer", "last_number", "choice", "math_verify")
_PATHS = {EXTRAS[n][0] if n in EXTRAS else path_of(REWARDS[n]) for n in NEED_ANSWER}


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
    unanswered: str = "drop",
) -> Task:
    """The problems of a file, .parquet or JSON lines; `prompt`, `answer`, `solution` name columns.

    A prompt of chat messages that ends in an assistant's message is continued; a conversation with
    its answer in it is refused (`checked_prompt`).
    Held out are those of `heldout_path`, or else `heldout_fraction` of the file by a hash of the
    prompt, 1 for a benchmark that nothing is to be trained on; a train problem whose prompt is held
    out is removed and counted in `Task.overlap`. The answer reaches the reward as the column
    `answer`; where every record has a solution, the task can solve. Where the reward needs answers,
    or `cases`, a record without any (null, blank, empty, or no such column `answer` where others
    have it) is dropped with a warning, or `unanswered` is "refuse", or "keep": then the reward
    abstains, and other rewards apply. ValueError names the file and line of a bad record.
    """
    form = make_template(template, system)
    accuracy = resolve(reward) if isinstance(reward, str) else reward
    dropped = dropping(unanswered, ("drop", "refuse", "keep"))
    make = functools.partial(
        _problem,
        names=(prompt, answer, solution),
        judged_by=_judged_by(path_of(accuracy), answer),
        keep=unanswered == "keep",
        text_only=template != "none",
    )
    train = _read(path, make, dropped)
    if heldout_path is not None:
        heldout = _read(heldout_path, make, dropped)
    else:
        train, heldout = _split(train, heldout_fraction)

    def solve(problem: Problem) -> str:
        return problem.columns[solution]

    solvable = all(isinstance(p.columns.get(solution), str) for p in [*train, *heldout])
    return file_task(
        "jsonl",
        train,
        heldout,
        files=[at_home(file) for file in (path, heldout_path) if file is not None],
        accuracy=accuracy,
        template=form,
        solve=solve if solvable else None,
        benchmark=heldout_path is None and heldout_fraction == 1,
        dropped=dropped,
    )


def _judged_by(reward: str, answer: str) -> str | None:
    """The column that a reward, by its import path, judges by; None where that is not known."""
    if reward == EXTRAS["code"][0]:
        return "cases"
    return answer if reward in _PATHS else None


def _read(path: str, make: Callable[[Record], Problem], dropped: Dropped) -> list[Problem]:
    try:
        return read_table(at_home(path), make, dropped)
    except NoAnswer as error:
        raise ValueError(
            f"{error}; valid: the right column in the option `answer`, a `reward` that needs none, "
            "or unanswered='keep', which leaves such records to other rewards"
        ) from error


def _split(problems: list[Problem], fraction: float) -> tuple[list[Problem], list[Problem]]:
    if not 0 < fraction <= 1:
        raise ValueError(f"heldout_fraction={fraction}: valid: above 0, up to 1")
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for problem in problems:
        sides[is_heldout(key(problem), fraction)].append(problem)
    return sides


def _problem(
    record: Record,
    names: tuple[str, str, str],
    judged_by: str | None,
    keep: bool,
    text_only: bool,
) -> Problem:
    prompt, answer, solution = names
    if prompt not in record:
        raise ValueError(unknown("column", prompt, record))
    try:
        if judged_by == "cases":
            _check_cases(record)
        elif judged_by is not None:
            _check_answer(record, answer)
    except NoAnswer:
        if not keep:
            raise
        record = {**record, str(judged_by): None}  # what rewards abstain from
    columns = {name: value for name, value in record.items() if name != prompt}
    if answer in columns:
        columns["answer"] = columns.pop(answer)
    for name in RESERVED:
        if name in columns:
            raise ValueError(f"column {name!r} is reserved for the rewards; valid: another name")
    answers = (columns.get("answer"), columns.get(solution))
    return Problem(checked_prompt(prompt, record[prompt], text_only, answers), columns)


def _check_cases(record: Record) -> None:
    """NoAnswer where a record has none; ValueError where they are none."""
    if "cases" not in record:
        raise ValueError(unknown("column", "cases", record))
    cases = record["cases"]
    written = "".join(cases.split()) if isinstance(cases, str) else ""  # cases may be JSON
    if is_blank(cases) or written in ("[]", "{}", "null"):
        raise NoAnswer(f"column 'cases' is {shown(cases)}")
    parse_cases(cases)


def _check_answer(record: Record, answer: str) -> None:
    """NoAnswer where a record has none; ValueError where another column's name is like its own."""
    if answer not in record:
        error = unknown("column", answer, record)
        raise ValueError(error) if "did you mean" in error else NoAnswer(error)
    if is_blank(record[answer]):
        raise NoAnswer(f"column {answer!r} is {shown(record[answer])}")
    value = record[answer]
    if isinstance(value, list | dict) and json.dumps(value, default=str) != str(value):
        # What rewards compare with is Python's form of it, which nobody writes, as in "['5']".
        raise ValueError(f"column {answer!r} is {shown(value)}; valid: text, or numbers")


def checked_prompt(
    column: str, value: object, text_only: bool, answers: Iterable[object] = ()
) -> Prompt:
    """A prompt, text or chat messages (not where text_only); ValueError where it is neither.

    Chat messages end in the question, or in an assistant's message to continue. ValueError too
    where that message states an answer (`is_answer`, given the record's `answers`), or where the
    column is one of CONVERSATIONS, which hold whole ones. "prefix": true in the message says that
    it is to be continued all the same.
    """
    if isinstance(value, str) and value != "":
        return value
    if not (isinstance(value, list) and value != [] and all(map(_is_message, value))):
        raise ValueError(
            f"column {column!r} is {shown(value)}; valid: text that is not empty, or a "
            'list of messages {"role": text, "content": text}' + _which(value)
        )
    if text_only:
        raise ValueError(
            f"column {column!r} holds chat messages; valid: text, or the option template='none'"
        )
    if {message["role"] for message in value} <= {"system", "developer"}:
        raise ValueError(f"column {column!r} asks nothing; valid: a message of the user's too")
    if value[-1]["role"] == "assistant" and value[-1].get("prefix") is not True:
        _check_open(column, value[-1]["content"], answers)
    return value


def _check_open(column: str, content: str, answers: Iterable[object]) -> None:
    """ValueError where an assistant's last message is no beginning but an answer."""
    if column in CONVERSATIONS or is_answer(content, answers):
        raise ValueError(
            f"column {column!r} ends in an answer of the assistant's, {shown(content)}; valid: "
            'messages up to the question, or "prefix": true in a last one to continue'
        )


def _which(value: object) -> str:
    """What is wrong with the first message of a list that is none; "" where it is no list."""
    messages = value if isinstance(value, list) else []
    bad = [(i, m) for i, m in enumerate(messages, 1) if not _is_message(m)]
    if not bad:
        return ""
    place, message = bad[0]
    if isinstance(message, dict) and isinstance(message.get("content"), list):
        return ", not a list of parts: models here read text only"
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        return f"; message {place} is {shown(message)}"
    name = "role" if not isinstance(message["role"], str) else "content"
    return f"; the {name} of message {place} is {shown(message[name])}"


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) for name in ("role", "content")
    )
