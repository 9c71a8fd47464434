"""One rollout of an iteration, with a sampler and a reward that only write down what they got."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from grpo_jax.rollout.grade import Graded, has_spread
from grpo_jax.rollout.play import Episodes, encode_batch, texts
from grpo_jax.rollout.sources import collect
from grpo_jax.tokenizers import char_tokenizer
from grpo_jax.types import Prompts, Rollouts

G, T = 3, 4
TOKENIZER = char_tokenizer("0123456789+=")


def problem(text):
    return SimpleNamespace(prompt=text, columns={})


class World:
    """Problems ("name", rewards of its group): everything sampled of one carries its number."""

    def __init__(self, *rounds, judges=False):
        self.judges = judges
        self.rounds, self.drawn, self.sampled = iter(rounds), 0, []

    def draw(self):
        self.drawn += 1
        return next(self.rounds)

    def make(self, problems, number):
        """Prompts of as many tokens as the name has letters, padded to the longest."""
        self.sampled.append(number)
        lengths = np.array([len(name) for name, _ in problems])
        S, marks = lengths.max(), [ord(name[0]) for name, _ in problems]
        mask = np.arange(S) >= S - lengths[:, None]
        prompts = Prompts(tokens=np.where(mask, np.array(marks)[:, None], 0), mask=mask)
        tokens = np.broadcast_to(np.array(marks)[:, None, None], (len(problems), G, T))
        shape = tokens.shape
        out = Rollouts(
            prompts=prompts,
            tokens=tokens,
            mask=tokens > 0,
            logp=1.0 * tokens,
            entropy=-1.0 * tokens,
            finished=np.ones(shape[:2]),
        )
        completions = [[f"{name}{g}" for g in range(G)] for name, _ in problems]
        rewards = np.array([r for _, r in problems], np.float32)
        steps = [[[(1, float(len(name)))]] * G for name, _ in problems]
        return Graded(
            episodes=Episodes(problems=problems, rollouts=out, completions=completions),
            rewards=rewards,
            parts={"half": rewards / 2},
            timeouts=1,
            steps=steps if self.judges else None,
        )

    def collect(self, rounds):
        return collect(self.draw, self.make, rounds)


FLAT, NONE = (1, 1, 1), (np.nan,) * 3
FIRST = [("aa", (0, 1, 0)), ("bb", FLAT), ("cc", NONE), ("dd", (0, 0, 0))]
SECOND = [("e", FLAT), ("ffff", (2, 0, 0)), ("g", FLAT), ("h", (0, 3, 0))]
THIRD = [("i", (4, 0, 4)), ("j", (0, 5, 0)), ("k", FLAT), ("l", FLAT)]


def check(batch, names):
    """Everything about slot i is of the problem names[i]."""
    r = batch.episodes.rollouts
    known = dict(FIRST + SECOND + THIRD)
    assert [name for name, _ in batch.episodes.problems] == names
    for i, name in enumerate(names):
        mark = ord(name[0])
        assert batch.episodes.completions[i] == [f"{name}{g}" for g in range(G)]
        np.testing.assert_array_equal(batch.rewards[i], known[name])
        np.testing.assert_array_equal(batch.parts["half"][i], np.array(known[name]) / 2)
        for array, value in ((r.tokens, mark), (r.logp, mark), (r.entropy, -mark)):
            assert np.all(array[i] == value)
        kept = r.prompts.tokens[i][r.prompts.mask[i]]
        assert kept.tolist() == [mark] * len(name)
        assert r.prompts.mask[i][-len(name) :].all()  # padded on the left


def test_without_rounds_dull_groups_stay():
    world = World(FIRST)
    batch = world.collect(0)
    check(batch, ["aa", "bb", "cc", "dd"])
    assert (world.drawn, batch.rounds, batch.timeouts) == (1, 0, 1)


def test_dull_groups_are_replaced_round_by_round():
    world = World(FIRST, SECOND, THIRD)
    batch = world.collect(5)
    check(batch, ["aa", "ffff", "h", "i"])
    assert batch.episodes.rollouts.prompts.tokens.shape == (4, 4)  # the wider bucket
    assert (world.sampled, batch.rounds, batch.timeouts) == ([0, 1, 2], 2, 3)
    assert has_spread(batch.rewards).all()


def test_the_limit_of_rounds_holds():
    world = World(FIRST, SECOND, THIRD)
    batch = world.collect(1)
    check(batch, ["aa", "ffff", "h", "dd"])
    assert (world.drawn, batch.rounds) == (2, 1)


def test_a_lively_first_batch_draws_no_more():
    world = World(THIRD[:2], SECOND)
    check(world.collect(3), ["i", "j"])
    assert world.drawn == 1


def test_spread_is_of_what_was_scored():
    rewards = np.array([[1, np.nan, 1], [1, np.nan, 2], [0.1, 0.1 + 1e-8, 0.1], [-1, 1, 0]])
    assert has_spread(rewards).tolist() == [False, True, False, True]


def test_steps_spread_as_the_outcome_does_and_count_with_it():
    rewards = np.array([[1, 1, 1]] * 4 + [[1, np.nan, np.nan]])
    alike, other = [(1, 1.0), (2, 1.0)], [(1, 0.0)]
    steps = [[alike, alike, []], [alike, other, alike], [[], [], []], [other] * 3]
    steps.append([other, alike, alike])  # of which the one that is scored has no other beside it
    assert has_spread(rewards, steps).tolist() == [False, True, False, True, False]
    abstained = np.array([[1, np.nan, 1]])
    assert not has_spread(abstained, [[alike, other, alike]]).any()


def test_steps_go_with_their_group():
    # A step's reward is the length of the name: "a" and "b" are alike in everything.
    rounds = [("a", FLAT), ("bb", (0, 1, 0)), ("c", FLAT)], [("d", FLAT), ("ee", FLAT)]
    batch = World(*rounds, judges=True).collect(1)
    assert [name for name, _ in batch.episodes.problems] == ["ee", "bb", "c"]
    assert batch.steps == [[[(1, reward)]] * G for reward in (2.0, 2.0, 1.0)]


def test_prompts_share_the_bucket_of_the_longest():
    shapes = {}
    for longest in ("1", "12345", "1234567"):
        out = encode_batch(TOKENIZER, [problem("1+1="), problem(longest)], 7, 4)
        shapes[longest] = out.tokens.shape
        for row, text in enumerate(("1+1=", longest)):
            ids = out.tokens[row][out.mask[row]]
            assert TOKENIZER.backend.decode(ids.tolist()) == text
    assert shapes == {"1": (2, 4), "12345": (2, 7), "1234567": (2, 7)}  # 8 is above the limit


@pytest.mark.parametrize(
    ("text", "message"),
    [("12345678", "prompt 1 .'12345678'. has 8 tokens; valid: 1 to 7"), ("1?", r"'\?' at pos.*1")],
)
def test_a_prompt_that_does_not_fit_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        encode_batch(TOKENIZER, [problem("1"), problem(text)], 7, 4)


def test_texts_are_of_what_the_policy_chose():
    tokens = np.array([[[2, 3, 1, 0], [4, 4, 4, 4]]])
    mask = np.array([[[1, 1, 1, 0], [1, 1, 1, 1]]], bool)
    assert texts(TOKENIZER, tokens, mask) == [["01", "2222"]]
    assert jax.tree.leaves(texts(TOKENIZER, tokens, mask & (tokens != 4))) == ["01", ""]
