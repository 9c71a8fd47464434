import json

import pytest

from grpo_jax.tasks import Problem, make_task
from grpo_jax.tasks.loader import batches

SOURCE = [Problem(str(i)) for i in range(10)]


def prompts(batch):
    return [problem.prompt for problem in batch]


def test_an_epoch_has_every_problem_once_and_the_next_another_order():
    stream = batches(SOURCE, 5, seed=0)
    first, second = ([*prompts(next(stream)), *prompts(next(stream))] for _ in range(2))
    assert sorted(first) == sorted(second) == [p.prompt for p in SOURCE]
    assert first != second


def test_the_order_depends_on_the_seed_only():
    a, b, c = (prompts(next(batches(SOURCE, 10, seed=s))) for s in (1, 1, 2))
    assert a == b != c
    assert prompts(next(batches(SOURCE, 10, seed=1, shuffle=False))) == prompts(SOURCE)


@pytest.mark.parametrize("steps", [0, 1, 3, 7])
def test_a_restored_position_continues_exactly(steps):
    def start():
        return batches(SOURCE, 4, seed=3, keep=lambda p: p.prompt not in "36")

    stream = start()
    for _ in range(steps):
        next(stream)
    state = json.loads(json.dumps(stream.get_state()))
    expected = [prompts(next(stream)) for _ in range(6)]
    other = start()
    next(other)
    other.set_state(state)
    assert [prompts(next(other)) for _ in range(6)] == expected


def test_keep_drops_problems():
    stream = batches(SOURCE, 3, seed=0, keep=lambda p: p.prompt in "123")
    assert sorted(prompts(next(stream))) == ["1", "2", "3"]


def test_keeping_nothing_is_an_error_and_not_a_hang():
    with pytest.raises(ValueError, match="no problem was kept of the last 20"):
        next(batches(SOURCE, 3, seed=0, keep=lambda p: False))


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="no problems"):
        batches([], 3, seed=0)


def test_a_task_streams():
    batch = next(batches(make_task("addition").train, 4, seed=0))
    assert all(isinstance(p, Problem) for p in batch) and len(batch) == 4
