"""Small functions to write: what is done to x, in words, and a program that does it."""

import random
from collections.abc import Sequence

from grpo_jax.rewards.registry import resolve
from grpo_jax.rewards.text import TAGS, Completion
from grpo_jax.tasks.problem import Problem, Prompt, Task, split

SIGNS = {"plus": "+", "minus": "-", "times": "*"}
# A thought in each language: how it begins, and what each step adds.
THOUGHTS = {
    "en": {"": "we take x", "plus": " and add {}", "minus": " less {}", "times": " and times {}"},
    "de": {"": "wir nehmen x", "plus": " und noch {}", "minus": " ohne {}", "times": " und mal {}"},
}
INPUTS = (-4, 10)  # of the cases: the functions are linear, so two distinguish them
_TEXTS = [text for thought in THOUGHTS.values() for text in thought.values()]
_TEXTS += [*SIGNS, *SIGNS.values(), "def f(x): return, =0123456789()"]
SYMBOLS = (*sorted(set("".join(_TEXTS)) - set("{}")), *TAGS)

Step = tuple[str, int]  # what is done to x so far, and with which number


def programs(
    max_steps: int = 2,
    max_number: int = 9,
    thinks: Sequence[str] = ("en",),
    heldout_size: int = 64,
    train_size: int = 1_000_000,
    seed: int = 0,
) -> Task:
    """Problems "f(x): x plus 3, times 2=", right if the program in the answer defines such an f.

    One to max_steps steps, numbers 2 to max_number; worked solutions think in the languages of
    `thinks`, "en" or "de", as the prompt fixes. Accuracy is the reward `code`: the program runs in
    a sandbox (the extra `code`). ValueError for options out of range.
    """
    if not thinks or not set(thinks) <= set(THOUGHTS):
        raise ValueError(f"thinks={list(thinks)}: valid: {', '.join(THOUGHTS)}, one or more")
    for option, value, low, high in (
        ("max_steps", max_steps, 1, 5),
        ("max_number", max_number, 2, 99),
    ):
        if not low <= value <= high:
            raise ValueError(f"{option}={value}: valid: {low} to {high}")

    def draw(rng: random.Random) -> tuple[Step, ...]:
        n = rng.randint(1, max_steps)
        return tuple((rng.choice(tuple(SIGNS)), rng.randint(2, max_number)) for _ in range(n))

    train, heldout = split(
        draw, _worded, _problem, train_size=train_size, heldout_size=heldout_size, seed=seed
    )

    def solve(problem: Problem) -> str:
        return solution(problem, random.Random(str(problem.prompt)).choice(tuple(thinks)))

    return Task("programs", train, heldout, _accuracy, solve, SYMBOLS)


def solution(problem: Problem, language: str) -> str:
    """<think>we take x and add 3 and multiply by 2</think><answer>def f(x): return ..."""
    said = str(problem.prompt).removeprefix("f(x): x ").removesuffix("=").split(", ")
    steps = [(word, int(number)) for word, number in (step.split() for step in said)]
    value, thought = "x", THOUGHTS[language][""]
    for word, number in steps:
        value = f"({value}{SIGNS[word]}{number})"
        thought += THOUGHTS[language][word].format(number)
    return f"<think>{thought}</think><answer>def f(x): return {value}</answer>"


def _worded(steps: tuple[Step, ...]) -> str:
    return f"f(x): x {', '.join(f'{word} {number}' for word, number in steps)}="


def _problem(steps: tuple[Step, ...]) -> Problem:
    cases = [{"call": "f", "args": [x], "expected": _value(steps, x)} for x in INPUTS]
    return Problem(_worded(steps), {"cases": cases})


def _value(steps: tuple[Step, ...], x: int) -> int:
    for word, number in steps:
        x = {"plus": x + number, "minus": x - number, "times": x * number}[word]
    return x


def _accuracy(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    cases: Sequence[object],
    **columns: object,
) -> Sequence[float | None]:
    return resolve("code")(prompts, completions, cases=cases)
