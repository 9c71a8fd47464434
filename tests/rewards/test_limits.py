"""How long a reward is waited for, and how often it is asked."""

import numpy as np
import pytest

from grpo_jax.rewards import RewardError, Scores, limits
from grpo_jax.rewards.batch import Batch
from grpo_jax.rewards.call import Group
from grpo_jax.rewards.evaluate import Failures


@pytest.mark.parametrize(
    ("began", "before", "overdue_after"),
    [
        (1, [], 2 * 3),  # not the first call of its process
        (-1, [], 2 * 3 + 30),
        (-1, [("cut_off", 9)], 2 * 3 + 15),
        (-1, [("cut_off", 9), ("cut_off", 9)], 2 * 3 + 7.5),
        (-1, [("returned", 5)], 2 * 3 + 11),
        (-1, [("returned", 5), ("returned", 2)], 2 * 3 + 11),
        (-1, [("returned", 100)], 2 * 3 + 30),
        (-1, [("cut_off", 9), ("returned", 5), ("cut_off", 9)], 2 * 3 + 11),
    ],
)
def test_loading_is_waited_for_as_long_as_it_has_taken(monkeypatch, began, before, overdue_after):
    now = 1000.0
    monkeypatch.setattr(limits.time, "monotonic", lambda: now)
    clock = [0.0]
    limit = limits.Limits(clock, 3.0)
    for what, seconds in before:
        clock[0] = -(now - seconds)
        getattr(limit, what)(0, "mine")
    limit.schedule(0)
    assert not limit.begun(0) and not limit.overdue(0, "mine", 2)
    clock[0], start = began * now, now
    now = start + overdue_after - 0.01
    assert limit.begun(0) and not limit.overdue(0, "mine", 2)
    now = start + overdue_after + 0.01
    assert limit.overdue(0, "mine", 2)
    loading = f" (and {overdue_after - 6:g} s to load at first use; what its at_start loads is not"
    assert limit.cut_off(0, "mine").startswith("3.0 s" + (loading if began < 0 else ""))


def test_a_reward_that_never_returns_is_given_up_within_a_batch():
    groups = [Group("p", list("abcdefgh"))] * 9
    calls = [(name, p, None) for name in ("never", "often") for p in range(9)]
    parts = {name: np.full((9, 8), np.nan, np.float32) for name in ("never", "often")}
    batch, made = Batch(calls, groups, parts), []
    while batch.waiting:
        call = batch.waiting.popleft()
        if not batch.wants(call):
            continue
        made.append(call)
        if call[0] == "often" and call[2] != 3 and call[1:] != (1, None):
            batch.keep(call, [1.0] if call[2] is not None else [1.0] * 8)
        else:
            batch.lose(call, "took more than 1 s", hung=True)
    first = [("never", 0, None), *(("never", 0, g) for g in range(8)), ("never", 1, None)]
    assert made[:10] == first
    assert [call for call in made if call[0] == "never"][9:] == [
        *[("never", 1, None)],
        *(("never", 1, g) for g in range(6)),
    ]
    assert len(made) == 16 + 9 + 8
    assert set(batch.lost) == {("never", p, g) for p in range(9) for g in range(8)} | {
        ("often", 1, 3)
    }
    assert set(batch.lost.values()) == {"took more than 1 s"}
    assert np.isnan(parts["never"]).all() and np.isnan(parts["often"]).sum() == 1


@pytest.mark.parametrize(
    ("failures", "ends_at"),
    [
        ([{"a": "hung"}] * 3, 3),
        ([{"a": "hung", "b": ""}, {"a": ""}, {"a": "hung"}, {"a": "hung"}], None),
        ([{"a": "hung"}, {"b": "hung"}, {"a": "hung"}, {"b": ""}, {"a": "hung"}], 5),  # not asked
        ([{"a": ""}, {"b": "hung"}, {"a": "hung", "b": "hung"}, {"b": "hung"}], 4),
    ],
)
def test_a_reward_lost_throughout_many_steps_in_a_row_ends_the_run(failures, ends_at):
    watched, none = Failures(3), np.zeros((0, 0), bool)
    message = r"reward '[ab]' hung for every completion of 3 steps in a row \(optimizer.max_bad_st"
    for number, failed in enumerate(failures, 1):
        scores = Scores({}, 0, none, failed)
        if number == ends_at:
            with pytest.raises(RewardError, match=message):
                watched.note(scores, number)
            return
        for _ in range(2):  # rounds of a step
            watched.note(scores, number)
    assert ends_at is None
