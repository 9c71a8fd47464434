"""Addition of two numbers of equally many digits, worked column by column with carries."""

import random
import re

from grpo_jax.rewards.text import TAGS, exact_answer
from grpo_jax.tasks.problem import Problem, Steps, Task, judges_steps, split
from grpo_jax.tasks.steps import scratchpad

SYMBOLS = (*"0123456789+= ", *TAGS)
_PROMPT = re.compile(r"(\d+)\+(\d+)=")


@judges_steps
def addition(
    digits: int = 3, heldout_size: int = 512, train_size: int = 1_000_000, seed: int = 0
) -> Task:
    """Problems "347+589=", answer "936"; both numbers have exactly `digits` digits.

    One fixed width puts every digit at the same place of every prompt, which a small model learns
    much sooner. A pair and its reverse are in the same split. ValueError for digits outside 1..18.
    """
    if not 1 <= digits <= 18:
        raise ValueError(f"digits={digits}: valid: 1 to 18")
    low, high = (10 ** (digits - 1) if digits > 1 else 0), 10**digits - 1

    def draw(rng: random.Random) -> tuple[int, int]:
        return rng.randint(low, high), rng.randint(low, high)

    train, heldout = split(
        draw, _key, _problem, train_size=train_size, heldout_size=heldout_size, seed=seed
    )
    return Task("addition", train, heldout, exact_answer, solve, SYMBOLS, steps=steps)


def _key(pair: tuple[int, int]) -> str:
    return f"{min(pair)}+{max(pair)}"


def _problem(pair: tuple[int, int]) -> Problem:
    return Problem(f"{pair[0]}+{pair[1]}=", {"answer": str(sum(pair))})


def solve(problem: Problem) -> str:
    """The worked solution, from the last digit on; a column: digit + digit + carry = two digits.

    "347+589=" gives "<think>7+9+0=16 4+8+1=13 3+5+1=09</think><answer>936</answer>": 9 tokens a
    column and 5 to 6 more, tags being one token each. ValueError for another kind of prompt.
    """
    return f"<think>{' '.join(_columns(problem))}</think><answer>{sum(_numbers(problem))}</answer>"


def steps(problem: Problem, text: str) -> Steps:
    """Every word of the scratchpad is a step: 1.0 where the worked solution has the same one in
    its place, else 0.0. A wrong carry makes the next column wrong too."""
    right = dict(enumerate(_columns(problem)))
    return [(end, float(word == right.get(i))) for i, (word, end) in enumerate(scratchpad(text))]


def _numbers(problem: Problem) -> tuple[int, int]:
    match = _PROMPT.fullmatch(str(problem.prompt))
    if match is None:
        raise ValueError(f"{problem.prompt!r} is not an addition; valid: '347+589='")
    return int(match[1]), int(match[2])


def _columns(problem: Problem) -> list[str]:
    a, b = map(str, _numbers(problem))
    width = max(len(a), len(b))
    columns, carry = [], 0
    for x, y in zip(reversed(a.zfill(width)), reversed(b.zfill(width)), strict=True):
        total = int(x) + int(y) + carry
        columns.append(f"{x}+{y}+{carry}={total:02d}")
        carry = total // 10
    return columns
