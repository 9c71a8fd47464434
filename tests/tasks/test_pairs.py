"""Pairs of earlier rounds among new ones, and pairs whose answers do not differ."""

import itertools
import json
from collections import Counter

import pytest

from grpo_jax.tasks import make_task
from grpo_jax.tasks.loader import batches


@pytest.fixture
def write(tmp_path):
    def file(name, records):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
        return str(path)

    return file


def numbered(start, size):
    """Pairs of as many prompts from `start` on."""
    numbers = range(start, start + size)
    return [{"prompt": f"{i}=", "chosen": "a", "rejected": "b"} for i in numbers]


def prompts(source):
    return [source[i].prompt for i in range(len(source))]


@pytest.mark.parametrize(("share", "a_round"), [(0.1, (9, 1)), (0.25, (3, 1)), (0.4, (3, 2))])
def test_replay_has_its_share_of_an_epoch(write, share, a_round):
    new = write("new", numbered(0, 100))
    earlier = [write("one", numbered(50, 30)), write("two", [*numbered(200, 9), *numbered(70, 1)])]
    plain = make_task("pairs", path=new)
    task = make_task("pairs", path=new, replay=tuple(earlier), replay_share=share)
    assert prompts(task.heldout) == prompts(plain.heldout)
    assert not set(prompts(task.train)) & set(prompts(task.heldout))
    kinds = [task.train[i].columns["kind"] for i in range(len(task.train))]
    for start in range(0, len(kinds), sum(a_round)):  # in every round
        counted = Counter(kinds[start : start + sum(a_round)])
        assert (counted["new"], counted["earlier"]) == a_round
    found = {kind: set() for kind in ("new", "earlier")}
    for kind, prompt in zip(kinds, prompts(task.train), strict=True):
        found[kind].add(prompt)
    assert found["new"] == set(prompts(plain.train))
    tasks = [make_task("pairs", path=path) for path in earlier]
    assert found["earlier"] == {p for one in tasks for p in prompts(one.train)}
    assert set("2=ab") <= set(task.symbols)  # of earlier ones only


def test_replay_goes_on_where_it_stood(write):
    new, earlier = write("new", numbered(0, 30)), write("one", numbered(50, 30))
    task = make_task("pairs", path=new, replay=(earlier,))
    size = len(task.train)
    whole, cut = batches(task.train, 5, seed=3), batches(task.train, 5, seed=3)
    drawn = [[p.prompt for p in batch] for batch in itertools.islice(whole, 2 * size // 5)]
    assert [[p.prompt for p in next(cut)] for _ in range(3)] == drawn[:3]
    resumed = batches(task.train, 5, seed=3)
    resumed.set_state(cut.get_state())
    assert [[p.prompt for p in next(resumed)] for _ in range(4)] == drawn[3:7]


def test_pairs_without_two_answers_are_left_out(write):
    texts = {
        "kept": ("<think>1</think>a", "<think>1</think>b"),
        "same": ("<think>1</think>a", "<think>2</think>a"),
        "none": ("<think>1</think>a", "<think>2"),
    }
    sides = [dict(zip(("chosen", "rejected"), two, strict=True)) for two in texts.values()]
    prompt = [f"{i}=" for i in range(30)]
    records = [{"prompt": p, **side} for p in prompt for side in sides]
    task = make_task("pairs", path=write("all", records), judged="answer", heldout_fraction=0.3)
    for source in (task.train, task.heldout):
        assert {(p.columns["chosen"], p.columns["rejected"]) for p in source} == {texts["kept"]}
    whole = make_task("pairs", path=write("all", records), heldout_fraction=0.3)
    assert len(whole.train) == 3 * len(task.train)


@pytest.mark.parametrize("worse", [{"rejected": "a"}, {"rejected": None}, {"chosen": " "}])
def test_a_pair_that_prefers_nothing_is_dropped(write, capsys, worse):
    records = numbered(0, 30)
    path = write("new", [*records, {**records[3], **worse}])
    assert make_task("pairs", path=path).train == make_task("pairs", path=write("b", records)).train
    [warning] = capsys.readouterr().err.splitlines()
    assert "warning: 1 of 31 records" in warning and "new.jsonl:31: column" in warning
    with pytest.raises(ValueError, match=r"new\.jsonl:31: column"):
        make_task("pairs", path=path, unanswered="refuse")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judged": "answers"}, "unknown judged 'answers'; did you mean 'answer'"),
        ({"judged": "answer"}, "new.jsonl: no pairs to train on; .*judged='answer'"),
        ({"replay_share": 1.0}, r"replay_share=1.0: valid: above 0, below 1"),
    ],
)
def test_bad_options_are_refused(write, options, message):
    with pytest.raises(ValueError, match=message):
        make_task("pairs", path=write("new", numbered(0, 20)), **options)
