"""Another task with its prompts in a template: for a model that expects a chat, or instructions."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TypeVar

from grpo_jax.tasks.problem import Options, Problem, Source, Task, listed
from grpo_jax.tasks.templates import make_template

T = TypeVar("T")
BARE = "bare_prompt"  # the column with the prompt as the task had it


class Framed:
    """The problems of a source, each with its prompt filled in as it is asked for."""

    def __init__(self, source: Source, fill: Callable[[Problem], Problem]):
        """Take a source, and what fills in a problem."""
        self.source, self.fill = source, fill

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Problem:
        return self.fill(self.source[index])

    def listed(self) -> Iterator[Problem]:
        """Those that are there already (see `problem.listed`)."""
        return map(self.fill, listed(self.source))


def framed(
    of: Options, template: str = "chat", says: str = "{prompt}", system: str | None = None
) -> Task:
    """The task with the options `of`, its prompts put into `says` and then into a template.

    Answers and worked solutions are the task's own. ValueError where {prompt} is not in `says`, and
    where a prompt is no text.
    """
    from grpo_jax.tasks import make_task

    if "{prompt}" not in says:
        raise ValueError(f"says={says!r}: valid: a text with {{prompt}} in it")
    task, form = make_task(**of), make_template(template, system)

    def fill(problem: Problem) -> Problem:
        if not isinstance(problem.prompt, str):
            _refuse([problem], 1)
        asked = form.prompt(says.replace("{prompt}", problem.prompt))
        columns = {**problem.columns, BARE: problem.prompt}
        return dataclasses.replace(problem, prompt=asked, columns=columns)

    def bare(function: Callable[..., T] | None) -> Callable[..., T] | None:
        """`function` of a problem of the task, as one of a framed problem."""
        return function and (
            lambda problem, *rest: function(
                dataclasses.replace(problem, prompt=problem.columns[BARE]), *rest
            )
        )

    there = [*listed(task.train), *listed(task.heldout)]
    if chats := [p for p in there if not isinstance(p.prompt, str)]:
        _refuse(chats, len(there))
    heldout = [fill(task.heldout[i]) for i in range(len(task.heldout))]
    train = Framed(task.train, fill)
    solve, steps = bare(task.solve), bare(task.steps)
    rest = (None, task.overlap, steps, task.files)
    return Task("framed", train, heldout, task.accuracy, solve, *rest)


def _refuse(chats: Sequence[Problem], n: int) -> NoReturn:
    raise ValueError(
        f"{chats[0].where or 'a problem of the task'}: the prompt is chat messages; valid: text, "
        f"which a task with template='none' has (the first of {len(chats)} among {n} problems)"
    )
