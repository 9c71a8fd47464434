"""Process supervision in the trainer: the rewards of steps, and learning from them."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from chat_tokenizer import save
from tiny import compile_fast, tiny_config  # noqa: F401

from grpo_jax.errors import UsageError
from grpo_jax.learning.policy import Policy
from grpo_jax.learning.state import TrainState
from grpo_jax.rewards.evaluate import Rewarder
from grpo_jax.rollout import sources
from grpo_jax.rollout.grade import Graded, step_rewards
from grpo_jax.rollout.play import Episodes
from grpo_jax.rollout.steps import grade_steps
from grpo_jax.runs import checkpoints
from grpo_jax.tasks import Problem, make_task
from grpo_jax.tokenizers import encode, load_tokenizer
from grpo_jax.training import rl as trainer
from grpo_jax.training import rl_step, starting
from grpo_jax.training.experiment import build
from grpo_jax.types import Prompts, Rollouts

PROCESS = {"algorithm.preset": "grpo_process", "algorithm.beta": 0.0}
EOS = 1
# Completions of "47+85=", with each step's reward and last token counted by hand: a tag is one
# token, a column 8 characters.
COLUMNS = "<think>{} {}</think><answer>{}</answer>"
RIGHT = (COLUMNS.format("7+5+0=12", "4+8+1=13", 132), [(1, 8), (1, 17)], 1.0)
SLIP = (COLUMNS.format("7+5+0=12", "4+8+1=12", 122), [(1, 8), (0, 17)], 0.0)
LUCK = (COLUMNS.format("7+5+0=11", "4+8+1=13", 132), [(0, 8), (1, 17)], 1.0)
BARE = ("<answer>132</answer>", [], 1.0)
LOST = ("<think>7+5+0=12", [(1, 8)], 0.0)  # cut off before it ends
GROUPS = [[RIGHT, SLIP, LUCK, BARE], [RIGHT, RIGHT, RIGHT, RIGHT], [LOST, SLIP, SLIP, BARE]]
T = 32


def rollouts(tokenizer, groups):
    """Rollouts of texts [P][G], each ended by EOS but those that are cut off."""
    shape = (len(groups), len(groups[0]), T)
    tokens, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
    for place in np.ndindex(shape[:2]):
        text = groups[place[0]][place[1]]
        ids = encode(tokenizer, text) + [EOS] * text.endswith("</answer>")
        tokens[place][: len(ids)], mask[place][: len(ids)] = ids, True
    zeros = np.zeros(shape, np.float32)
    prompts = Prompts(tokens=np.full((shape[0], 2), 5, np.int32), mask=np.ones((shape[0], 2), bool))
    return Rollouts(
        prompts=prompts, tokens=tokens, mask=mask, logp=zeros, entropy=zeros, finished=mask.any(-1)
    )


def numpy_advantages(group, lengths):
    """DeepSeekMath 4.1.3 in float64; the outcome is a step that the last token ends."""
    members = zip(group, lengths, strict=True)
    steps = [[*judged, (outcome, n - 1)] for (_, judged, outcome), n in members]
    every = np.array([r for one in steps for r, _ in one], np.float64)
    std = every.std(ddof=1) or 1.0
    return [
        [sum((r - every.mean()) / std for r, end in one if end >= t) * (t < n) for t in range(T)]
        for one, n in zip(steps, lengths, strict=True)
    ]


def test_the_trainers_advantages_are_those_of_the_paper_in_float64(monkeypatch):
    changes = {"rewards": {"accuracy": 1.0}, "rollout.prompts": len(GROUPS), "task.digits": 2}
    ex = build(tiny_config(**PROCESS, **changes))
    drawn = rollouts(ex.tokenizer, [[text for text, *_ in group] for group in GROUPS])
    batches = []

    def learn(learner, state, batch, number):
        batches.append(batch)
        return state, {}

    monkeypatch.setattr(sources, "generate", lambda *_: drawn)
    monkeypatch.setattr(rl_step, "learn", learn)
    same = Problem("47+85=", {"answer": "132"})  # one sum over and over
    ex = dataclasses.replace(ex, task=dataclasses.replace(ex.task, train=[same]))
    stage = trainer.reinforcement(ex, Rewarder({"accuracy": ex.task.accuracy}), None)
    state = TrainState(step=np.zeros(()), policy=Policy(trained={}), opt_state=None, rng=None)
    step = stage.step(state, 1)
    lengths = drawn.mask.sum(-1)
    want = [numpy_advantages(*group) for group in zip(GROUPS, lengths, strict=True)]
    np.testing.assert_allclose(batches[0].advantages, want, atol=1e-5)
    assert not np.any(want[1]) and np.all(np.any(np.array(want)[[0, 2]], -1))
    assert step.metrics["frac_reward_zero_std"] == pytest.approx(1 / 3)
    right, number = [r for g in GROUPS for _, judged, _ in g for r, _ in judged], 12
    assert step.metrics["rewards/steps/mean"] == pytest.approx(np.mean(right))
    assert step.metrics["rewards/steps/number"] == pytest.approx(len(right) / number)
    # What follows the last column is only the answer's: a wrong one is below the mean.
    answers = np.array(want)[0, :, 18]
    assert answers[1] < 0 < min(answers[0], answers[2])


def test_a_step_ends_with_the_token_of_its_last_character(tmp_path):
    """Of a Hugging Face tokenizer; tokens that the policy did not choose are skipped over."""
    save(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    text = "12 + 34 = 46 the cat"
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    place, (start, end) = next(
        (i, offset) for i, offset in enumerate(encoding.offsets) if text[slice(*offset)] == " the"
    )
    tokens = np.array([[[*encoding.ids[:2], 9, *encoding.ids[2:]]] * 2])
    mask = np.ones(tokens.shape, bool)
    mask[..., 2] = False
    steps = [[[(12, 1.0), (start + 2, 0.5)], []]]
    drawn = Rollouts(
        prompts=None,
        tokens=tokens,
        mask=mask,
        logp=mask * 0.0,
        entropy=mask * 0.0,
        finished=mask.any(-1),
    )
    episodes = Episodes(problems=[], rollouts=drawn, completions=[])
    graded = Graded(episodes=episodes, rewards=mask, parts={}, timeouts=0, steps=steps)
    found = step_rewards(tokenizer, graded)
    # " the" is one token, and the step ends with its second character.
    assert end - start == 4 and place > 2
    assert found.ends[0, 0, :3].tolist() == [place, place + 1, -1]
    assert found.rewards[0, 0, :3].tolist() == [1.0, 0.5, 0.0]
    assert np.all(found.ends[0, 1] == -1) and found.ends.shape == found.rewards.shape == (1, 2, 8)


@pytest.mark.parametrize("step", [(0, 1.0), (6, 1.0), (2, float("nan"))])
def test_a_judge_that_says_the_impossible_is_named(step):
    task = dataclasses.replace(make_task("addition"), steps=lambda problem, text: [step])
    with pytest.raises(UsageError, match=r"task 'addition' judged .*end of 1 to 5 .*'12345'"):
        grade_steps(task, [Problem("1+1=")], [["12345"]])


@pytest.mark.parametrize(
    ("held", "text", "steps"),
    [
        ("<think>", "7+5+0=12 4+8+1=13</think><answer>132</answer>", [(8, 1.0), (17, 1.0)]),
        ("<think>7+5+0=12", " 4+8+1=13</think><answer>132</answer>", [(9, 1.0)]),
        ("<think></think>", "<answer>132</answer>", []),
    ],
)
def test_steps_are_of_the_turn_that_the_prompt_began(held, text, steps):
    problem = make_task("addition", digits=2).train[0]
    problem = dataclasses.replace(problem, prompt="47+85=")
    [[found]] = grade_steps(make_task("addition"), [problem], [[text]], lambda prompt: held)
    assert [(end, float(reward)) for end, reward in found] == steps


def sevens(problem, text):
    """Every character is a step, and a "7" the right one."""
    return [(i + 1, float(c == "7")) for i, c in enumerate(text)]


@pytest.fixture
def judged_by_sevens(monkeypatch):
    def judged(*given):
        ex = build(*given)
        return dataclasses.replace(ex, task=dataclasses.replace(ex.task, steps=sevens))

    monkeypatch.setattr(starting, "build", judged)


def test_steps_are_learnt_from_and_a_run_goes_on_exactly(judged_by_sevens, tmp_path):
    """The outcome is the same for all: what is learnt is learnt from the steps."""
    config = tiny_config(
        **PROCESS,
        **{"steps": 12, "checkpoint.every": 6, "rewards": {"format": 1.0}},
        **{"rollout.max_tokens": 6, "optimizer.learning_rate": 3e-2},
        **{"algorithm.minibatches": 2, "optimizer.accumulation": 2},
    )
    whole, again = tmp_path / "whole", tmp_path / "again"
    trainer.train(config, whole)
    records = [json.loads(line) for line in (whole / "metrics.jsonl").open()]
    assert {r["reward"] for r in records} == {0.0}
    shares = [r["rewards/steps/mean"] for r in records]
    assert np.mean(shares[:3]) < 0.25 and np.mean(shares[-3:]) > 0.75

    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoints" / "12")
    trainer.train(config, again)
    ends = [checkpoints.restore_params(f / "checkpoints")[0] for f in (whole, again)]
    jax.tree.map(np.testing.assert_array_equal, *ends)
