"""Countdown: reach a target from given numbers with + - * /."""

import ast
import operator
import random
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

from grpo_jax.rewards.text import TAGS, Completion, extract_answer
from grpo_jax.rewards.turn import Prompt, of_turn
from grpo_jax.tasks.problem import Problem, Steps, Task, judges_steps, split
from grpo_jax.tasks.steps import scratchpad

SYMBOLS = (*"0123456789+-*/()=> x", *TAGS)
MAX_LENGTH = (
    100  # characters of an answer; bounds the depth of its tree and the size of its numbers
)
SHOWN_FAILURES = 2

_MOVE = re.compile(r"(-?\d{1,9})([-+*/])(-?\d{1,9})=(-?\d{1,9})", re.ASCII)
_ALLOWED = re.compile(r"[0-9+\-*/() ]+")
_SIGNS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
}


class Puzzle(NamedTuple):
    """The numbers to use, and the target to reach."""

    numbers: tuple[int, ...]
    target: int


class Term(NamedTuple):
    """A value on the table, and the expression that made it."""

    value: int
    text: str


@judges_steps
def countdown(
    count: int = 3,
    max_number: int = 12,
    max_target: int = 60,
    heldout_size: int = 512,
    train_size: int = 1_000_000,
    seed: int = 0,
) -> Task:
    """Problems "3 7 12>24=": `count` numbers in 1..max_number, a target in 1..max_target.

    Rule: an answer is an expression in which every given number stands exactly once, joined by
    + - * / and parentheses, and whose value, in exact fractions, is the target. Every problem has
    a solution whose steps are all positive integers. ValueError for options out of range.
    """
    for name, value, low, high in (
        ("count", count, 2, 5),
        ("max_number", max_number, 1, 999),
        ("max_target", max_target, 1, 9999),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name}={value}: valid: {low} to {high}")

    def draw(rng: random.Random) -> Puzzle:
        for _ in range(10_000):
            numbers = tuple(rng.randint(1, max_number) for _ in range(count))
            result, _ = next(_attempts(_terms(numbers), rng))
            if result.value <= max_target:
                return Puzzle(numbers, result.value)
        raise ValueError(f"max_target={max_target} is out of reach; valid: a larger one")

    train, heldout = split(
        draw, _key, _problem, train_size=train_size, heldout_size=heldout_size, seed=seed
    )
    return Task("countdown", train, heldout, accuracy, solve, SYMBOLS, steps=steps)


def _key(puzzle: Puzzle) -> str:
    return f"{sorted(puzzle.numbers)}>{puzzle.target}"


def _problem(puzzle: Puzzle) -> Problem:
    prompt = f"{' '.join(map(str, puzzle.numbers))}>{puzzle.target}="
    return Problem(prompt, {"numbers": list(puzzle.numbers), "target": puzzle.target})


@of_turn
def accuracy(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    numbers: Sequence[Sequence[int]],
    target: Sequence[int],
    **columns: object,
) -> list[float]:
    """1.0 where the extracted answer follows the rule (see `countdown`), else 0.0."""
    return [
        float(reaches(extract_answer(c), n, t))
        for c, n, t in zip(completions, numbers, target, strict=True)
    ]


def reaches(text: str, numbers: Sequence[int], target: int) -> bool:
    """Whether the expression uses each number exactly once and its value is the target."""
    try:
        value, used = evaluate(text)
    except ValueError:
        return False
    return value == target and sorted(used) == sorted(numbers)


def evaluate(text: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression, and the numbers in it.

    Only integers, + - * / and parentheses, at most MAX_LENGTH characters; ValueError otherwise, and
    for a division by zero. Nothing is executed.
    """
    text = text.strip()
    if len(text) > MAX_LENGTH or not _ALLOWED.fullmatch(text):
        raise ValueError(f"not an expression of numbers, + - * / and parentheses: {text[:40]!r}")
    try:
        tree = ast.parse(text, mode="eval")
        return _value(tree.body)
    except (SyntaxError, MemoryError, RecursionError, ZeroDivisionError) as error:
        raise ValueError(f"{text!r}: {error}") from error


def _value(node: ast.expr) -> tuple[Fraction, list[int]]:
    # type() and not isinstance: True is an int.
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Fraction(node.value), [node.value]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, left_used = _value(node.left)
        right, right_used = _value(node.right)
        return _SIGNS[_OPERATORS[type(node.op)]](left, right), left_used + right_used
    raise ValueError(f"{type(node).__name__} is not allowed")


def solve(problem: Problem) -> str:
    """A worked solution: none to two random attempts that fail, each ended by an x, then the one.

    "3 7 12>15=" may give "<think>12+7=19 19-3=16 x 12-7=5 5*3=15</think><answer>(12-7)*3</answer>";
    the prompt fixes which. ValueError where no steps in positive integers reach the target.
    """
    numbers, target = problem.columns["numbers"], problem.columns["target"]
    terms, rng = _terms(numbers), random.Random(str(problem.prompt))
    tried = [next(_attempts(terms, rng)) for _ in range(rng.randint(0, SHOWN_FAILURES))]
    failed = [" ".join([*steps, "x"]) for result, steps in tried if result.value != target]
    for result, steps in _attempts(terms, rng):
        if result.value == target:
            trace = " ".join([*failed, *steps])
            return f"<think>{trace}</think><answer>{result.text}</answer>"
    raise ValueError(f"{problem.prompt!r} has no solution in positive integers")


def steps(problem: Problem, text: str) -> Steps:
    """Every word of the scratchpad is a step, except an x, after which all numbers are there again.

    1.0 for a move "12-7=5" that holds and takes two numbers that are there, for what it makes, else
    0.0. A move of an earlier attempt is no step, so that repeating it earns nothing.
    """
    found: dict[tuple[str, int], tuple[int, float]] = {}
    there: list[int] = list(problem.columns["numbers"])
    made: list[str] = []
    for word, end in scratchpad(text):
        if word == "x":
            there, made = list(problem.columns["numbers"]), []
            continue
        left = _moved(there, word)
        found.setdefault((word, made.count(word)), (end, float(left is not None)))
        there = there if left is None else left
        made.append(word)
    return list(found.values())


def _moved(there: Sequence[int], move: str) -> list[int] | None:
    """The numbers that are there after a move; None where it cannot be made."""
    match = _MOVE.fullmatch(move)
    if match is None:
        return None
    a, b, value = int(match[1]), int(match[3]), int(match[4])
    left = list(there)
    for number in (a, b):
        if number not in left:
            return None
        left.remove(number)
    possible = b != 0 or match[2] != "/"
    holds = possible and _SIGNS[match[2]](Fraction(a), Fraction(b)) == value
    return [*left, value] if holds else None


def _terms(numbers: Sequence[int]) -> list[Term]:
    return [Term(n, str(n)) for n in numbers]


def _attempts(
    terms: list[Term], rng: random.Random, steps: tuple[str, ...] = ()
) -> Iterator[tuple[Term, tuple[str, ...]]]:
    """Every way to join the terms into one, depth first in random order, with its steps."""
    if len(terms) == 1:
        yield terms[0], steps
        return
    pairs = [(i, j) for i in range(len(terms)) for j in range(i)]
    moves = [(i, j, op) for i, j in pairs for op in "+-*/"]
    rng.shuffle(moves)
    for i, j, op in moves:
        a, b = sorted((terms[i], terms[j]), key=lambda term: -term.value)
        value = _step(a.value, op, b.value)
        if value is not None:
            joined = Term(value, f"{_inner(a.text)}{op}{_inner(b.text)}")
            rest = [term for k, term in enumerate(terms) if k not in (i, j)]
            yield from _attempts([*rest, joined], rng, (*steps, f"{a.value}{op}{b.value}={value}"))


def _step(a: int, op: str, b: int) -> int | None:
    """a op b for a >= b > 0, where that is a positive integer."""
    if op == "+":
        return a + b
    if op == "-":
        return a - b or None
    if op == "*":
        return a * b
    return None if a % b else a // b


def _inner(text: str) -> str:
    return text if text.isdigit() else f"({text})"
