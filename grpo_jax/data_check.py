"""The problems of files, checked before the first step: what is too long, and what cannot be read.

Problems that are drawn are checked as they come (`Experiment.fits`), with the same words.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from grpo_jax.checks import UsageError
from grpo_jax.experiment import Experiment, named, too_long
from grpo_jax.progress import say
from grpo_jax.tasks.problem import Problem, listed
from grpo_jax.tokenizers import encode_each, excerpt, prompt_text

CHUNK = 500  # problems that are encoded together
PATIENCE_S = 1.0  # before it is said how far the check is


class Text(NamedTuple):
    """A text of a problem: a prompt, a worked solution, or another that has no limit of tokens.

    special  whether the tokenizer adds its special tokens
    stopped  whether a stop token is to follow
    """

    problem: Problem
    name: str
    text: str
    limit: float
    special: bool = False
    stopped: bool = False


class Fault(NamedTuple):
    """A text that has too many tokens, or that `error` says cannot be encoded."""

    of: Text
    tokens: int = 0
    error: ValueError | None = None


def check_data(ex: Experiment) -> None:
    """Refuse, or count, what the experiment's model cannot read of the files of its task.

    Checks prompts of both sides; with sft.steps, worked solutions; of pairs, the completions.
    UsageError names the first fault by file and record, says how many there are, and what helps.
    With overlong_prompts='drop', prints how many problems that leaves out.
    """
    if ex.config.sft.steps and ex.task.solve is None:
        raise UsageError(
            f"config.sft.steps={ex.config.sft.steps}: task {ex.task.name!r} has no solutions"
        )
    sides = {"training": list(listed(ex.task.train)), "held-out": list(listed(ex.task.heldout))}
    progress = _progress(sum(map(len, sides.values())))
    for side, problems in sides.items():
        found: list[Fault] = []
        for begin in range(0, len(problems), CHUNK):
            chunk = problems[begin : begin + CHUNK]
            found += faults(ex, [text for p in chunk for text in _texts(ex, p, side)])
            progress(len(chunk))
        _judge(ex, side, len(problems), found)


def _texts(ex: Experiment, problem: Problem, side: str) -> Iterator[Text]:
    c = ex.config
    try:
        prompt = prompt_text(ex.tokenizer, problem.prompt)
    except ValueError as error:
        raise ValueError(f"{named(problem)}: {error}") from error
    yield Text(problem, "prompt", prompt, c.prompt_length, special=isinstance(problem.prompt, str))
    if side == "training" and c.sft.steps and ex.task.solve is not None:
        limit = c.rollout.max_tokens
        yield Text(problem, "worked solution", ex.solution(problem), limit, stopped=True)
    if ex.task.name == "pairs":
        for name in ("chosen", "rejected"):
            yield Text(problem, f"column {name!r}", problem.columns[name], float("inf"))


def faults(ex: Experiment, texts: Sequence[Text]) -> list[Fault]:
    """The faults among texts, in their order."""
    found: dict[int, Fault] = {}
    for special in (False, True):
        places = [i for i, text in enumerate(texts) if text.special == special]
        some = [texts[i].text for i in places]
        encoded = encode_each(ex.tokenizer, some, add_special_tokens=special)
        for i, ids in zip(places, encoded, strict=True):
            if isinstance(ids, ValueError):
                found[i] = Fault(texts[i], error=ids)
            elif not ids and texts[i].name == "prompt":
                found[i] = Fault(texts[i], error=ValueError("it has no tokens"))
            elif len(ids) + texts[i].stopped > texts[i].limit:
                found[i] = Fault(texts[i], len(ids) + texts[i].stopped)
    return [found[i] for i in sorted(found)]


def _judge(ex: Experiment, side: str, n: int, found: Sequence[Fault]) -> None:
    """Refuse the faults among the n problems of a side, or say how many are dropped."""
    unreadable = [fault for fault in found if fault.error is not None]
    if unreadable:
        of, _, error = unreadable[0]
        text = "" if of.name == "prompt" else f"{of.name} of "
        which = f"{named(of.problem)}: {text}prompt {excerpt(of.problem.prompt)}"
        raise UsageError(f"{which}: {error}{_counted(unreadable, n, side)}")
    if not found:
        return
    of, tokens, _ = found[0]
    if ex.config.overlong_prompts == "drop":
        dropped = len({id(fault.of.problem) for fault in found})
        say(
            f"overlong_prompts=drop leaves out {dropped} of {n} {side} problems, the first "
            f"{named(of.problem)}"
        )
        return
    alike = [fault for fault in found if fault.of.name == of.name]
    longest = max(fault.tokens for fault in alike)
    told = too_long(ex.config, of.problem, of.name, tokens, longest)
    raise UsageError(f"{told}{_counted(alike, n, side)}")


def _counted(found: Sequence[Fault], n: int, side: str) -> str:
    return f" (the first of {len(found)} among {n} {side} problems)"


def _progress(total: int) -> Callable[[int], None]:
    """A function that adds up what is checked, and says so where the check takes long."""
    done, told = 0, time.monotonic()

    def add(n: int) -> None:
        nonlocal done, told
        done += n
        if time.monotonic() - told > PATIENCE_S:
            told = time.monotonic()
            say(f"checked {done:,} of {total:,} problems")

    return add
