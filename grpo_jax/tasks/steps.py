"""Shared by the tasks that judge steps of a solution: scratchpads, and equations of numbers."""

import ast
import operator
import re
from collections.abc import Callable, Iterator
from fractions import Fraction

from grpo_jax.tasks.problem import Problem, Steps

_WORD = re.compile(r"</?(?:think|answer)>|[^\s<]+|<")
_SIGNS = {"x": "*", "\u00d7": "*", r"\times": "*", r"\cdot": "*", "\u00f7": "/", r"\div": "/"}
_SIGN = rf"(?:[-+*/]|{'|'.join(map(re.escape, _SIGNS))})"
_NUMBER = r"\$?\d{1,15}+(?:,\d{3})*+(?:\.\d{1,15}+)?+"
_OPEN, _CLOSE = r"(?:\( *){0,4}+", r"(?: *\)){0,4}+"
# Of at most 50 numbers, which bounds the time that a match takes and the depth of the tree.
_LEFT = rf"-?{_OPEN}{_NUMBER}(?:{_CLOSE} *{_SIGN} *{_OPEN}{_NUMBER}){{1,49}}+{_CLOSE}"
# Nothing stands beside it that would make it a part of something longer; "- " opens a list.
_BEFORE = r"(?<![\w.,$(*/+-])(?<!\S [-+*/x\u00d7\u00f7] )(?<!\\times )(?<!\\cdot )(?<!\\div )"
_AFTER = rf"(?!\d|[.,]\d| *%| *{_SIGN} *[$\d(])"
_EQUATION = re.compile(rf"{_BEFORE}({_LEFT}) *= *(-?{_NUMBER}){_AFTER}", re.ASCII)
_OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def scratchpad(text: str) -> Iterator[tuple[str, int]]:
    """The words before </think> or <answer>, without the tag <think>, and where each ends."""
    for match in _WORD.finditer(text):
        if match[0] in ("</think>", "<answer>", "</answer>"):
            return
        if match[0] != "<think>":
            yield match[0], match.end()


def equations(problem: Problem, text: str) -> Steps:
    r"""Every equation of numbers, such as "48/2 = 24" or "(1 + 2) \times $5 = $15", is a step.

    1.0 where it holds, to the decimals that its right side has, else 0.0. One that was
    there before is no step, so that repeating it earns nothing; whether a step helps is left to the
    reward of the outcome.
    """
    steps: dict[tuple[str, str], tuple[int, float]] = {}
    for match in _EQUATION.finditer(text):
        left, right = map(_plain, match.groups())
        left = left[max(left.count("(") - left.count(")"), 0) :]  # "(1 + 2 = 3)"
        holds = _holds(left, right)
        if holds is not None:
            steps.setdefault((left, right), (match.end(), float(holds)))
    return list(steps.values())


def _plain(side: str) -> str:
    """A side of an equation with only Python's signs."""
    for sign, plain in _SIGNS.items():
        side = side.replace(sign, plain)
    return re.sub("[ $,]", "", side)


def _holds(left: str, right: str) -> bool | None:
    """Whether the sides are equal; None where the left one cannot be read."""
    try:
        gap = abs(_value(ast.parse(left, mode="eval").body) - Fraction(right))
    except SyntaxError:  # a parenthesis too many
        return None
    except ZeroDivisionError:
        return False
    decimals = len(right.partition(".")[2])
    return gap <= (Fraction(1, 2 * 10**decimals) if decimals else 0)


def _value(node: ast.AST) -> Fraction:
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand)
    assert isinstance(node, ast.Constant)
    return Fraction(str(node.value))
