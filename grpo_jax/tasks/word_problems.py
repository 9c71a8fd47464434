"""One-step word problems in plain English: add, take away, groups of, shared among."""

import operator
import random
from collections.abc import Callable
from typing import NamedTuple

from grpo_jax.rewards.numbers import last_number
from grpo_jax.rewards.text import TAGS
from grpo_jax.tasks.problem import Problem, Task, split
from grpo_jax.tasks.templates import make_template

SYMBOLS = (*TAGS, "\n", *map(chr, range(32, 127)))  # printable ASCII
NAMES = (
    *("Anna", "Ben", "Carla", "David", "Ella", "Farid", "Grace", "Hugo", "Ines", "Jack"),
    *("Kofi", "Lena", "Mei", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tariq", "Yuki"),
)
THINGS = (
    *("apples", "books", "buttons", "cards", "coins", "cookies", "eggs", "lemons", "marbles"),
    *("oranges", "pencils", "photos", "shells", "stamps", "stickers", "stones"),
)


class Kind(NamedTuple):
    """An operation on two numbers, its sign, and the stories that ask for it."""

    operation: Callable[[int, int], int]
    sign: str
    stories: tuple[str, ...]


KINDS = {
    "add": Kind(
        operator.add,
        "+",
        (
            "{name} has {a} {things}. {friend} gives {name} {b} more. "
            "How many {things} does {name} have now?",
            "{name} found {a} {things} in the morning and {b} in the afternoon. "
            "How many {things} did {name} find that day?",
            "There are {a} {things} on the table. {name} puts {b} more {things} there. "
            "How many {things} are on the table now?",
            "{name} has {a} {things} and {friend} has {b} {things}. "
            "How many {things} do they have together?",
            "{name} bought {a} {things} on Monday and {b} on Friday. "
            "How many {things} did {name} buy in all?",
        ),
    ),
    "take_away": Kind(
        operator.sub,
        "-",
        (
            "{name} had {a} {things} and gave {b} of them to {friend}. "
            "How many {things} does {name} have left?",
            "There were {a} {things} in a box. {name} took out {b} of them. "
            "How many {things} are still in the box?",
            "{name} has {a} {things}. {friend} has {b} fewer. "
            "How many {things} does {friend} have?",
            "{name} needs {a} {things} and already has {b}. "
            "How many more {things} does {name} need?",
            "{name} carried {a} {things} home and lost {b} on the way. "
            "How many {things} did {name} bring home?",
        ),
    ),
    "groups": Kind(
        operator.mul,
        "*",
        (
            "{name} has {a} bags with {b} {things} in each. "
            "How many {things} does {name} have in all?",
            "{name} lays {a} rows of {b} {things}. How many {things} does {name} use?",
            "One box holds {b} {things}. How many {things} do {a} boxes hold?",
            "{a} children bring {b} {things} each. How many {things} do they bring together?",
            "{name} gets {b} {things} every day. How many {things} does {name} get in {a} days?",
        ),
    ),
    "share": Kind(
        operator.floordiv,
        "/",
        (
            "{name} shares {a} {things} equally among {b} friends. "
            "How many {things} does each friend get?",
            "{name} packs {a} {things} into {b} boxes, the same number in each. "
            "How many {things} are in each box?",
            "{name} lays {a} {things} in {b} equal rows. How many {things} are in each row?",
            "{name} puts {a} {things} into bags of {b}. How many bags does {name} fill?",
            "{b} children found {a} {things} and split them evenly. "
            "How many {things} does each child get?",
        ),
    ),
}


class Story(NamedTuple):
    """A problem before it is worded: which story of its kind, the numbers, who, and what."""

    kind: str
    number: int
    a: int
    b: int
    name: str
    friend: str
    things: str


def word_problems(
    max_number: int = 20,
    max_factor: int = 9,
    template: str = "none",
    system: str | None = None,
    heldout_size: int = 256,
    train_size: int = 1_000_000,
    seed: int = 0,
) -> Task:
    """Problems in four kinds (column `kind`), whose `answer` is a whole number of at least 2.

    Add: both numbers are 2 to max_number; take away undoes it. Groups: both are 2 to max_factor;
    share undoes it. A story with its two numbers is on one side only, whoever it is about.
    Accuracy: `rewards.numbers.last_number`. ValueError for options out of range.
    """
    for option, value in (("max_number", max_number), ("max_factor", max_factor)):
        if not 2 <= value <= 999:
            raise ValueError(f"{option}={value}: valid: 2 to 999")
    form = make_template(template, system)

    def draw(rng: random.Random) -> Story:
        kind = rng.choice(tuple(KINDS))
        limit = max_number if kind in ("add", "take_away") else max_factor
        a, b = rng.randint(2, limit), rng.randint(2, limit)
        a = {"take_away": a + b, "share": a * b}.get(kind, a)
        number = rng.randrange(len(KINDS[kind].stories))
        name, friend = rng.sample(NAMES, 2)
        return Story(kind, number, a, b, name, friend, rng.choice(THINGS))

    def problem(story: Story) -> Problem:
        return Problem(form.prompt(_worded(story)), _columns(story))

    def solve(problem: Problem) -> str:
        return form.solution(problem.columns["solution"], problem.columns["answer"])

    train, heldout = split(
        draw, _key, problem, train_size=train_size, heldout_size=heldout_size, seed=seed
    )
    symbols = SYMBOLS if isinstance(heldout[0].prompt, str) else None
    return Task("word_problems", train, heldout, last_number, solve, symbols)


def _key(story: Story) -> str:
    return f"{story.kind} {story.number} {story.a} {story.b}"


def _worded(story: Story) -> str:
    return KINDS[story.kind].stories[story.number].format(**story._asdict())


def _columns(story: Story) -> dict[str, str]:
    operation, sign, _ = KINDS[story.kind]
    answer = str(operation(story.a, story.b))
    equation = f"{story.a} {sign} {story.b} = {answer}."
    return {"answer": answer, "solution": equation, "kind": story.kind}
