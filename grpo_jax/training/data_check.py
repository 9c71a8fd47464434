"""The problems of files, checked before the first step: what is too long, and what cannot be read.

Problems that are drawn are checked as they come (`Experiment.fits`), with the same words.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from grpo_jax.console.progress import say
from grpo_jax.errors import UsageError, excerpt
from grpo_jax.rewards.columns import misread
from grpo_jax.rewards.evaluate import scored_by
from grpo_jax.rewards.text import Reward
from grpo_jax.tasks.file_task import warn_of_unread
from grpo_jax.tasks.mixture import judge
from grpo_jax.tasks.problem import Problem, Source, listed
from grpo_jax.tokenizers import encode_each, prompt_text
from grpo_jax.training.experiment import Experiment, named, too_long
from grpo_jax.training.load_reward_model import PREFIX

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


class Part(NamedTuple):
    """Problems that a run reads, what they are called, and the checks of some of them."""

    name: str
    problems: list[Problem]
    checks: Sequence[Callable[[Sequence[Problem]], list[Fault]]]


def check_data(ex: Experiment, sampled: bool = True) -> None:
    """Refuse, or count, what the experiment cannot read of the files of its task.

    Checks what the run is going to use: prompts of both sides; of a cold start the worked
    solutions; what the rewards of config.rewards read; of pairs, the completions.
    UsageError names the first fault by file and record, says how many there are, and what helps.
    With overlong_prompts='drop', prints how many problems, and solutions, that leaves out.

    sampled  whether completions are: a reward model's run has no cold start, and no rewards
    """
    if sampled and ex.config.sft.steps and ex.task.solve is None:
        raise UsageError(
            f"config.sft.steps={ex.config.sft.steps}: task {ex.task.name!r} has no solutions"
        )
    parts = [part for part in _parts(ex, sampled) if part.problems]
    progress = _progress(sum(len(part.problems) for part in parts))
    for part in parts:
        found: list[Fault] = []
        for begin in range(0, len(part.problems), CHUNK):
            chunk = part.problems[begin : begin + CHUNK]
            places = {id(problem): i for i, problem in enumerate(chunk)}
            some = [fault for check in part.checks for fault in check(chunk)]
            found += sorted(some, key=lambda fault: places[id(fault.of.problem)])
            progress(len(chunk))
        _judge(ex, part, found)


def _parts(ex: Experiment, sampled: bool) -> Iterator[Part]:
    c, prompts = ex.config, partial(_prompt_faults, ex)
    learnt, solved = list(listed(ex.task.train)), []
    if sampled and c.sft.steps:
        solved = _first(ex.task.train, c.sft.examples) if c.sft.examples else learnt
        if not c.steps and not c.sft.stop_accuracy:
            learnt = solved  # nothing else is read
    rewards = _rewards(ex) if sampled and c.steps else {}
    if reward := rewards.get("math_verify"):
        asked = [p for p in learnt if _asks(p, "math_verify")]  # others were named with their task
        warn_of_unread(reward, [p for p in asked if judge(ex.task.accuracy, p) is not reward])
    yield Part("training problems", learnt, [prompts, partial(_reward_faults, rewards)])
    yield Part("worked solutions", solved, [partial(_solution_faults, ex)])
    if c.eval.every:
        heldout = list(listed(ex.task.heldout))
        if c.overlong_prompts == "refuse":  # else those behind take the place of the dropped
            heldout = heldout[: c.eval.problems]
        yield Part("held-out problems", heldout, [prompts])


def _first(source: Source, n: int) -> list[Problem]:
    """Those of a source's first n problems that are from files, each once."""
    if isinstance(source, Sequence):
        return list(source[:n])
    if not list(itertools.islice(listed(source), 1)):
        return []
    problems = map(source.__getitem__, range(min(n, len(source))))
    return list({problem.where: problem for problem in problems if problem.where}.values())


def _rewards(ex: Experiment) -> dict[str, Reward]:
    """The rewards of config.rewards that are functions, by name."""
    names = [name for name in ex.config.rewards if not name.startswith(PREFIX)]
    return {name: ex.reward(name) for name in names}


def _asks(problem: Problem, reward: str) -> bool:
    """Whether the reward applies to a problem; not where the column `rewards` is at fault."""
    try:
        return scored_by(problem, reward)
    except ValueError:
        return False


def _reward_faults(rewards: Mapping[str, Reward], problems: Sequence[Problem]) -> list[Fault]:
    found = []
    for problem in problems:
        why = ""
        try:
            for name, reward in rewards.items():
                if scored_by(problem, name) and (why := misread(reward, problem.columns)):
                    why = f"reward {name!r}: {why}"
                    break
        except ValueError as error:  # the column `rewards` itself
            why = str(error)
        if why:
            found.append(_fault(problem, ValueError(why)))
    return found


def _prompt_faults(ex: Experiment, problems: Sequence[Problem]) -> list[Fault]:
    texts, found = [], []
    for problem in problems:
        try:
            prompt = prompt_text(ex.tokenizer, problem.prompt)
        except ValueError as error:  # of the chat template
            found.append(_fault(problem, error))
            continue
        special = isinstance(problem.prompt, str)
        texts.append(Text(problem, "prompt", prompt, ex.config.prompt_length, special=special))
        for name in ("chosen", "rejected") if ex.task.pairs else ():
            texts.append(Text(problem, f"column {name!r}", problem.columns[name], math.inf))
    return found + faults(ex, texts)


def _solution_faults(ex: Experiment, problems: Sequence[Problem]) -> list[Fault]:
    texts, limit = [], ex.config.rollout.max_tokens
    for problem in problems:
        try:
            solution = ex.solution(problem)
        except ValueError:  # of the chat template, which was said of its prompt
            continue
        texts.append(Text(problem, "worked solution", solution, limit, stopped=True))
    return faults(ex, texts)


def _fault(problem: Problem, error: ValueError) -> Fault:
    return Fault(Text(problem, "prompt", "", math.inf), error=error)


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


def _judge(ex: Experiment, part: Part, found: Sequence[Fault]) -> None:
    """Refuse the faults among the problems of a part, or say how many are dropped."""
    unreadable = [fault for fault in found if fault.error is not None]
    if unreadable:
        of, _, error = unreadable[0]
        text = "" if of.name == "prompt" else f"{of.name} of "
        which = f"{named(of.problem)}: {text}prompt {excerpt(of.problem.prompt)}"
        raise UsageError(f"{which}: {error}{_counted(unreadable, part)}")
    if not found:
        return
    of, tokens, _ = found[0]
    if ex.config.overlong_prompts == "drop":
        say(
            f"overlong_prompts=drop leaves out {len(found)} of {len(part.problems)} {part.name}, "
            f"the first {named(of.problem)}"
        )
        return
    longest = max(fault.tokens for fault in found)
    message = too_long(ex.config, of.problem, of.name, tokens, longest)
    raise UsageError(f"{message}{_counted(found, part)}")


def _counted(found: Sequence[Fault], part: Part) -> str:
    n = len({id(fault.of.problem) for fault in found})
    return f" (the first of {n} among {len(part.problems)} {part.name})"


def _progress(total: int) -> Callable[[int], None]:
    """A function that adds up what is checked, and says so where the check takes long."""
    done, said_at = 0, time.monotonic()

    def add(n: int) -> None:
        nonlocal done, said_at
        done += n
        if time.monotonic() - said_at > PATIENCE_S:
            said_at = time.monotonic()
            say(f"checked {done:,} of {total:,} problems")

    return add
