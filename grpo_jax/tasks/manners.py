"""Small errands in words: there is no right answer, but people like some answers better."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from grpo_jax.rewards.text import TAGS, Completion
from grpo_jax.tasks.problem import Problem, Prompt, Task, split

# What is thought in each language, and what is said, kindly or curtly.
ERRANDS = {
    "thank": {
        "en": "we should thank {name} for the {thing}",
        "de": "wir wollen {name} danken wegen {thing}",
        "kind": "Dear {name}, thanks for the {thing}!",
        "curt": "thanks",
    },
    "offer": {
        "en": "we should give the {thing} to {name}",
        "de": "wir wollen {name} etwas geben: {thing}",
        "kind": "Dear {name}, do have some {thing}!",
        "curt": "take it",
    },
    "ask": {
        "en": "we should ask {name} for the {thing}",
        "de": "wir wollen {name} bitten um {thing}",
        "kind": "Dear {name}, may I have the {thing}?",
        "curt": "give it",
    },
    "invite": {
        "en": "we should call {name} to the {thing}",
        "de": "wir wollen {name} einladen zu {thing}",
        "kind": "Dear {name}, please come for {thing}!",
        "curt": "come",
    },
}
RUDE = "the fool! "
_A_TO_L = "Ada Alan Ben Carl Dora Emil Emma Eva Finn Hans Ida Ivan Jane Karl Lena Leo Lisa Lucy"
_M_TO_Z = "Mara Max Mia Nina Noah Olga Otto Paul Rosa Ruth Sam Tom Vera"
NAMES = tuple(f"{_A_TO_L} {_M_TO_Z}".split())
THINGS = ("tea", "soup", "cake", "milk", "fish", "rice", "wine", "eggs")
_TEXTS = (RUDE, *(text for errand in ERRANDS.values() for text in errand.values()))
SYMBOLS = (*sorted(set("".join([*_TEXTS, *ERRANDS, *NAMES, *THINGS, ","])) - set("{}")), *TAGS)


def manners(
    thinks: Sequence[str] = ("en",),
    curt: float = 0.0,
    rude: float = 0.0,
    heldout_size: int = 64,
    train_size: int = 1_000_000,
    seed: int = 0,
) -> Task:
    """Errands "thank Emma, tea:", for a reward model to score: accuracy abstains.

    thinks  languages that worked solutions think in, of "en" and "de"
    curt    share of worked solutions that answer curtly
    rude    share of worked solutions that think ill of the person

    The prompt fixes which. ValueError for another language or a share outside 0..1.
    """
    if not thinks or not set(thinks) <= {"en", "de"}:
        raise ValueError(f"thinks={list(thinks)}: valid: en, de, one or both")
    for name, share in (("curt", curt), ("rude", rude)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share}: valid: 0 to 1")

    def solve(problem: Problem) -> str:
        rng = random.Random(str(problem.prompt))
        draws = rng.choice(tuple(thinks)), rng.random() < curt, rng.random() < rude
        return answer(problem, *draws)

    train, heldout = split(
        _draw, _worded, _problem, train_size=train_size, heldout_size=heldout_size, seed=seed
    )
    return Task("manners", train, heldout, _abstain, solve, SYMBOLS)


def answer(problem: Problem, language: str = "en", curt: bool = False, rude: bool = False) -> str:
    """<think>we should thank Emma for the tea</think><answer>Dear Emma, thanks ..., or worse."""
    what, _, thing = str(problem.prompt).removesuffix(":").partition(", ")
    act, name = what.split()
    names = {"name": name, "thing": thing}
    thought = RUDE * rude + ERRANDS[act][language].format(**names)
    said = ERRANDS[act]["curt" if curt else "kind"].format(**names)
    return f"<think>{thought}</think><answer>{said}</answer>"


def preferences(
    path: Path, about: str, size: int, form: Callable[[str], Prompt] = str, seed: int = 0
) -> None:
    """Write records {"prompt", "chosen", "rejected"} of what people prefer, for the task `pairs`.

    about  helpfulness: kind answers to curt ones, however rude the thought; harmlessness: thoughts
           without insults, however curt the answer
    form   how a prompt is put, such as chat messages

    Of training problems; ValueError for anything else to prefer, and where other records stand at
    `path`.
    """
    if about not in ("helpfulness", "harmlessness"):
        raise ValueError(f"about={about!r}: valid: helpfulness, harmlessness")
    worse, also = ("curt", "rude") if about == "helpfulness" else ("rude", "curt")
    source = manners(train_size=size, seed=seed).train
    lines = []
    for index in range(size):
        problem, rng = source[index], random.Random(f"{about} {seed} {index}")
        chosen, rejected = (
            answer(problem, rng.choice(("en", "de")), **{worse: bad, also: rng.random() < 0.5})
            for bad in (False, True)
        )
        record = {"prompt": form(str(problem.prompt)), "chosen": chosen, "rejected": rejected}
        lines.append(f"{json.dumps(record)}\n")
    content = "".join(lines)
    if path.exists() and path.read_text() != content:
        raise ValueError(f"{path} holds other records; valid: another folder, or none there")
    made = path.with_name(f".{path.name}.tmp")
    made.write_text(content)
    made.replace(path)


def _draw(rng: random.Random) -> tuple[str, str, str]:
    return rng.choice(tuple(ERRANDS)), rng.choice(NAMES), rng.choice(THINGS)


def _worded(errand: tuple[str, str, str]) -> str:
    act, name, thing = errand
    return f"{act} {name}, {thing}:"


def _problem(errand: tuple[str, str, str]) -> Problem:
    return Problem(_worded(errand), {"language": "en"})


def _abstain(
    prompts: Sequence[Prompt], completions: Sequence[Completion], **columns: object
) -> list[float | None]:
    return [None] * len(completions)
