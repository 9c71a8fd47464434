"""Pairs of completions of one prompt, the first preferred: what a reward model learns from."""

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial

from grpo_jax.errors import unknown
from grpo_jax.files import at_home
from grpo_jax.rewards.text import Completion, completion_text, final_answer
from grpo_jax.tasks.file_task import file_task, key
from grpo_jax.tasks.jsonl import checked_prompt
from grpo_jax.tasks.mixture import Mixed
from grpo_jax.tasks.problem import Problem, Prompt, Source, Task, is_heldout
from grpo_jax.tasks.records import Dropped, NoAnswer, Record, dropping, read_table, text
from grpo_jax.tasks.templates import make_template


def whole(completion: Completion) -> str | None:
    """A completion's text; None where it is blank."""
    text = completion_text(completion)
    return text if text.strip() else None


# What a reward model reads of a completion; None where there is nothing to read.
JUDGED = {"whole": whole, "answer": final_answer}


def pairs(
    path: str,
    heldout_fraction: float = 0.1,
    prompt: str = "prompt",
    chosen: str = "chosen",
    rejected: str = "rejected",
    template: str = "none",
    system: str | None = None,
    judged: str = "whole",
    replay: Sequence[str] = (),
    replay_share: float = 0.1,
    unanswered: str = "drop",
) -> Task:
    """The pairs of a file, .parquet or JSON lines; the options name its columns.

    judged        what a reward model reads of completions: 'whole', or 'answer', only
                  `final_answer`; pairs without two different ones are then left out
    replay        files of earlier pairs, beside those of `path`
    replay_share  the share of an epoch's pairs that are earlier ones (DeepSeekMath, 4.1.4)

    Held out are `heldout_fraction` of the file's pairs by a hash of the prompt, so no prompt is on
    both sides, earlier pairs' neither. The worked solution is the chosen completion, and right is
    what equals it. A pair with one text twice, or with a null or blank one, is dropped with a
    warning, or `unanswered` is "refuse". ValueError names the file and line of a bad record.
    """
    if not 0 < heldout_fraction < 1:
        raise ValueError(f"heldout_fraction={heldout_fraction}: valid: above 0, below 1")
    if not 0 < replay_share < 1:
        raise ValueError(f"replay_share={replay_share}: valid: above 0, below 1")
    if judged not in JUDGED:
        raise ValueError(unknown("judged", judged, JUDGED))
    names = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    dropped = dropping(unanswered)
    read = partial(
        _read,
        make=partial(_pair, names=names, chat=template == "none"),
        judged=judged,
        dropped=dropped,
        heldout_fraction=heldout_fraction,
    )
    train, heldout = read(path)
    earlier = [problem for file in replay for problem in read(file)[False]]
    task = file_task(
        "pairs",
        [*train, *earlier],
        heldout,
        files=[at_home(file) for file in (path, *replay)],
        accuracy=_as_chosen,
        template=make_template(template, system),
        solve=lambda problem: problem.columns["chosen"],
        dropped=dropped,
    )
    source = _replaying(task.train, len(train), replay_share) if replay else task.train
    return dataclasses.replace(task, train=source, pairs=True)


def _replaying(source: Source, new: int, share: float) -> Mixed:
    """The first `new` pairs of a source, and the others as often as their share of an epoch."""
    filled = [source[i] for i in range(len(source))]
    exact = Fraction(str(share))
    shares = {"new": exact.denominator - exact.numerator, "earlier": exact.numerator}
    return Mixed({"new": filled[:new], "earlier": filled[new:]}, shares)


def _read(
    path: str,
    make: Callable[[Record], Problem],
    judged: str,
    heldout_fraction: float,
    dropped: Dropped,
) -> tuple[list[Problem], list[Problem]]:
    """A file's pairs to learn from, and those held out."""
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for problem in read_table(at_home(path), make, dropped):
        texts = [JUDGED[judged](problem.columns[name]) for name in ("chosen", "rejected")]
        if None not in texts and texts[0] != texts[1]:
            sides[is_heldout(key(problem), heldout_fraction)].append(problem)
    if not sides[False]:
        raise ValueError(
            f"{path}: no pairs to train on; valid: more records, whose completions differ in what "
            f"judged={judged!r} reads of them"
        )
    return sides


def _pair(record: Record, names: dict[str, str], chat: bool) -> Problem:
    two = {name: text(record, names[name], is_answer=True) for name in ("chosen", "rejected")}
    if two["chosen"] == two["rejected"]:
        raise NoAnswer(f"columns {names['chosen']!r} and {names['rejected']!r} are the same text")
    asked = record.get(names["prompt"])
    return Problem(checked_prompt(names["prompt"], asked, not chat, two.values()), two)


def _as_chosen(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    chosen: Sequence[str],
    **columns: object,
) -> list[float]:
    return [float(completion_text(c) == text) for c, text in zip(completions, chosen, strict=True)]
