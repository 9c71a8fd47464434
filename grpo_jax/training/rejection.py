"""Rejection sampling (DeepSeek-R1, 2501.12948, 2.3.3): a policy's right samples as data."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from grpo_jax.config.checks import config_diff
from grpo_jax.errors import UsageError
from grpo_jax.files import Json, inside_run, listed, read_object
from grpo_jax.rewards.evaluate import Rewarder, scored_by
from grpo_jax.rollout.reward_models import Scorer, only
from grpo_jax.runs.run import (
    append_line,
    changed_sources,
    read_lines,
    write_atomically,
    write_lines,
    writing_in,
)
from grpo_jax.tasks import Problem
from grpo_jax.tokenizers import keep_tokenizer, prefill
from grpo_jax.training.evaluation import ROWS, attempts, first_problems
from grpo_jax.training.experiment import Experiment
from grpo_jax.training.load_reward_model import PREFIX, load_reward_model, reward_model_sources
from grpo_jax.types import Params

KEPT = "kept"
# What helps where a prompt is too long for a run, whose config no flag changes here.
LONGER = (
    "or config.overlong_prompts='drop' of the run to leave such problems out: go on with it by "
    "experiments.train with --config.overlong_prompts=drop"
)


class Rule(NamedTuple):
    """How samples are drawn and which are kept.

    problems     training problems
    samples      completions of each
    keep         at most so many of a problem are kept
    temperature  that they are drawn at
    language     "" or an ISO 639-1 code: all words of a kept thought are in it (extra `language`),
                 where the problem is one for the reward `language`
    judges       folders of reward models: where the task's accuracy abstains, the sample with the
                 highest sum of their scores is right
    first        the first problem's place; after the last one comes the first of all
    """

    problems: int
    samples: int
    keep: int
    temperature: float
    language: str = ""
    judges: tuple[str, ...] = ()
    first: int = 0


def verdicts(
    rule: Rule,
    completions: Sequence[str],
    right: Bool[np.ndarray, " G"],
    finished: Bool[np.ndarray, " G"],
) -> list[str]:
    """For each completion of one problem, 'kept' or the first filter that dropped it.

    cut (at the limit of tokens)  wrong (or not the best liked)  language  repeated (kept before)
    surplus (keep are kept)
    """
    found: list[str] = []
    kept: set[str] = set()
    for text, is_right, is_finished in zip(completions, right, finished, strict=True):
        checks = (
            ("cut", not is_finished),
            ("wrong", not is_right),
            ("language", bool(rule.language) and not _pure(text, rule.language)),
            ("repeated", text in kept),
            ("surplus", len(kept) >= rule.keep),
        )
        found.append(next((name for name, dropped in checks if dropped), KEPT))
        if found[-1] == KEPT:
            kept.add(text)
    return found


def best_liked(
    scorers: Sequence[Scorer], problems: Sequence[Problem], completions: Sequence[Sequence[str]]
) -> np.ndarray:
    """Whether a completion has the highest sum of scores in its group, bool[P, G]; False without
    reward models.
    """
    shape = len(completions), len(completions[0])
    if not scorers:
        return np.zeros(shape, bool)
    liked = np.sum([scorer(problems, completions) for scorer in scorers], axis=0)
    return np.arange(shape[1]) == liked.argmax(-1)[:, None]


def _pure(text: str, language: str) -> bool:
    from grpo_jax.rewards.language import language as reward

    return reward([None], [text], language=[language])[0] in (None, 1.0)


def reject(
    ex: Experiment, params: Params, rewarder: Rewarder, rule: Rule, out: Path, origin: str
) -> dict[str, int]:
    """Sample, judge and filter into the folder `out`; resumes where it was cut off.

    samples.jsonl  a line a problem: its completions, each the whole turn (`rewards.turn`), and what
                   became of it
    kept.jsonl     a line for each that is kept, its text in the column `solution`: task jsonl
    dropped.jsonl  a line for each that is not, with its `filter`
    pairs.jsonl    a line for each pair of a kept and a wrong one of a problem: task pairs
    tokenizer/     the policy's, for who is to read as it wrote

    Returns how many samples had which verdict. UsageError where `out` was begun with another rule,
    or of other data, and where it holds anything that was not begun here.
    """
    named = [f"{PREFIX}{folder}" for folder in rule.judges]
    sources = ex.sources() | reward_model_sources(named)
    with _begun(out, {"origin": origin, **rule._asdict()}, sources):
        return _reject(ex, params, rewarder, rule, out)


def _reject(ex: Experiment, params: Params, rewarder: Rewarder, rule: Rule, out: Path):
    scorers = [load_reward_model(Path(f), ex.reader, ex.model.config) for f in rule.judges]
    judge = partial(rewarder, names=("accuracy",))
    journal = out / "samples.jsonl"
    n = len(ex.task.train)
    order = (i % n for i in range(rule.first, rule.first + n))
    fits, how = partial(ex.fits, helps=LONGER), ex.answering(rule.temperature)
    problems = first_problems(ex.task.train, order, rule.problems, fits, "training", "problems")
    size = max(1, ROWS // rule.samples)
    done = read_lines(journal)
    for number, record in enumerate(done, 1):
        if not all(isinstance(record.get(name), list) for name in ("completions", "verdicts")):
            raise UsageError(f"{journal}, line {number}: no completions and their verdicts")
    if len(done) < len(problems):
        done = done[: len(done) // size * size]  # whole batches, so that their noise is the same
    write_lines(journal, done)
    kept = sum(KEPT in record["verdicts"] for record in done)
    for start in range(len(done), len(problems), size):
        chunk = problems[start : start + size]
        a = attempts(params, judge, chunk, rule.samples, how, start)
        unknown = [not all(row) for row in a.judged]
        asked = [only(scorer, ex.mesh, unknown) for scorer in scorers]
        right = np.where(a.judged, a.right, best_liked(asked, chunk, a.completions))
        for i, problem in enumerate(chunk):
            own = rule if scored_by(problem, "language") else rule._replace(language="")
            held = prefill(ex.tokenizer, problem.prompt)
            turns = [held + text for text in a.completions[i]]
            given = verdicts(own, turns, right[i], a.finished[i])
            record = {**problem.columns, "prompt": problem.prompt, "problem": start + i}
            append_line(journal, record | {"completions": turns, "verdicts": given})
            kept += KEPT in given
        print(
            f"{start + len(chunk)}/{len(problems)} problems, {kept} with a kept sample", flush=True
        )
    with writing_in(out):
        keep_tokenizer(ex.tokenizer, out / "tokenizer")
    return _divide(out, read_lines(journal))


@contextlib.contextmanager
def _begun(out: Path, rule: Json, sources: dict[str, str]) -> Iterator[None]:
    """Begin in `out`; after an error before anything was sampled, leave no rule of it there."""
    new, made = not (out / "rule.json").exists(), not out.exists()
    _begin(out, rule, sources)
    try:
        yield
    except Exception:
        if new and not read_lines(out / "samples.jsonl"):
            for name in ("rule.json", "samples.jsonl"):
                (out / name).unlink(missing_ok=True)
            if made and not any(out.iterdir()):
                out.rmdir()
        raise


def _begin(out: Path, rule: Json, sources: dict[str, str]) -> None:
    """Keep the rule, and fingerprints of what is read, in a new or empty folder; UsageError where
    another stands there, or no rule."""
    stands = inside_run(out)
    path = out / "rule.json"
    if stands is None and out.exists() and not path.exists():
        if not out.is_dir():
            stands = "is a file"
        elif [p for p in out.iterdir() if not p.name.startswith(".")]:
            stands = f"holds {listed(out)}, and no rule.json of rejection sampling"
    if stands is not None:
        raise UsageError(f"{out} {stands}; valid: a new or empty folder, or one to go on with")
    out.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_atomically(path, json.dumps(rule | {"sources": sources}).encode())
        return
    begun = Rule._field_defaults | read_object(path)
    kept = {"sources": begun.pop("sources", {})}  # an older one has none
    if changed := config_diff(begun, rule):
        raise UsageError(f"{out} was begun with another rule: {'; '.join(changed)}")
    for name in changed_sources(kept, sources):
        raise UsageError(f"{out} was begun when {name} had other content; valid: a new folder")


def _divide(out: Path, records: list[Json]) -> dict[str, int]:
    counts: dict[str, int] = {}
    kept, dropped, pairs = [], [], []
    for record in records:
        columns = {k: v for k, v in record.items() if k not in ("completions", "verdicts")}
        for text, verdict in zip(record["completions"], record["verdicts"], strict=True):
            counts[verdict] = counts.get(verdict, 0) + 1
            if verdict == KEPT:
                kept.append(columns | {"solution": text})
            else:
                dropped.append(columns | {"completion": text, "filter": verdict})
        pairs += [columns | pair for pair in _pairs(record)]
    write_lines(out / "kept.jsonl", kept)
    write_lines(out / "dropped.jsonl", dropped)
    write_lines(out / "pairs.jsonl", pairs)
    return counts


def _pairs(record: Json) -> list[dict[str, str]]:
    """Kept and wrong completions of a problem two by two, the fewer of them repeated.

    Of equal ones, one; empty ones, which teach a reward model nothing, are left out.
    """
    pairs = list(zip(record["completions"], record["verdicts"], strict=True))
    kept, wrong = (
        list(dict.fromkeys(text for text, its in pairs if its == verdict and text.strip()))
        for verdict in (KEPT, "wrong")
    )
    if not kept or not wrong:
        return []
    return [
        {"chosen": kept[i % len(kept)], "rejected": wrong[i % len(wrong)]}
        for i in range(max(len(kept), len(wrong)))
    ]
