"""Another task with its prompts in a template: for a model that expects a chat, or to be told."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from grpo_jax.tasks.problem import Problem, Source, Task
from grpo_jax.tasks.templates import make_template

BARE = "bare_prompt"  # the column with the prompt as the task had it


class Framed:
    """The problems of a source, each with its prompt filled in as it is asked for."""

    def __init__(self, source: Source, fill):
        """Take a source and a function of a problem to a problem."""
        self.source, self.fill = source, fill

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Problem:
        return self.fill(self.source[index])


def framed(
    of: Mapping[str, Any], template: str = "chat", says: str = "{prompt}", system: str | None = None
) -> Task:
    """The task with the options `of`, its prompts put into `says` and then into a template.

    Answers and worked solutions are the task's own. ValueError where {prompt} is not in `says`.
    """
    from grpo_jax.tasks import make_task

    if "{prompt}" not in says:
        raise ValueError(f"says={says!r}: valid: a text with {{prompt}} in it")
    task, form = make_task(**of), make_template(template, system)

    def fill(problem: Problem) -> Problem:
        asked = form.prompt(says.replace("{prompt}", str(problem.prompt)))
        return Problem(asked, {**problem.columns, BARE: problem.prompt})

    def solve(problem: Problem) -> str:
        assert task.solve is not None
        return task.solve(dataclasses.replace(problem, prompt=problem.columns[BARE]))

    heldout = [fill(task.heldout[i]) for i in range(len(task.heldout))]
    train = Framed(task.train, fill)
    own = task.solve and solve
    return Task("framed", train, heldout, task.accuracy, own, overlap=task.overlap)
