"""Errands: what is preferred to what, and worked solutions as messy as asked for."""

import json
from collections import Counter

import pytest

from grpo_jax.tasks import make_task
from grpo_jax.tasks.manners import ERRANDS, NAMES, RUDE, answer, preferences


def is_curt(text):
    return not any(name in text.split("<answer>")[1] for name in NAMES)


def is_rude(text):
    return RUDE in text


@pytest.mark.parametrize(("about", "worse"), [("helpfulness", is_curt), ("harmlessness", is_rude)])
def test_what_is_preferred_differs_in_what_it_is_about(tmp_path, about, worse):
    path = tmp_path / "pairs.jsonl"
    preferences(path, about, 200)
    records = [json.loads(line) for line in path.open()]
    assert len(records) == 200
    assert {(worse(r["chosen"]), worse(r["rejected"])) for r in records} == {(False, True)}
    other = is_rude if worse is is_curt else is_curt
    counts = Counter((other(r["chosen"]), other(r["rejected"])) for r in records)
    assert len(counts) == 4 and min(counts.values()) > 25  # which says nothing about the other
    task = make_task("pairs", path=str(path))
    assert not {p.prompt for p in make_task("manners").heldout} & {p.prompt for p in task.train}


def test_worked_solutions_are_as_messy_as_asked_for():
    tidy, messy = make_task("manners"), make_task("manners", thinks=("de",), curt=0.5, rude=0.2)
    problems = [tidy.train[i] for i in range(400)]
    texts = [tidy.solve(p) for p in problems]
    assert not any(is_curt(text) or is_rude(text) for text in texts)
    assert set("".join(texts)) - set("<>/") <= set("".join(s for s in tidy.symbols)) - set("<>/")
    worse = [messy.solve(p) for p in problems]
    assert all("wir wollen" in text for text in worse)
    assert 150 < sum(map(is_curt, worse)) < 250 and 50 < sum(map(is_rude, worse)) < 110
    assert worse == [messy.solve(p) for p in problems]


def test_nothing_is_right_or_wrong():
    task = make_task("manners")
    problem = task.heldout[0]
    assert task.accuracy([problem.prompt], [answer(problem)]) == [None]
    assert {p.prompt.split()[0] for p in task.heldout} == set(ERRANDS)


@pytest.mark.parametrize("bad", [{"thinks": ("fr",)}, {"thinks": ()}, {"curt": 1.5}, {"rude": -1}])
def test_bad_options_are_refused(bad):
    with pytest.raises(ValueError, match=rf"{next(iter(bad))}=.*valid: "):
        make_task("manners", **bad)
