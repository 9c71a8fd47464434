"""Bradley-Terry: the loss in NumPy float64, learning to order pairs, and going on exactly."""

import dataclasses
import json
import random
import shutil
from functools import partial
from types import SimpleNamespace

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from documented import undocumented
from tiny import compile_fast, reference, tiny_config  # noqa: F401

from grpo_jax.errors import UsageError
from grpo_jax.learning.microbatches import micro_batched
from grpo_jax.models.critic import init_critic
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.weights import save_model
from grpo_jax.rewards import RewardError
from grpo_jax.rollout import reward_models
from grpo_jax.runs.checkpoints import restore_params
from grpo_jax.tasks import Problem, make_task
from grpo_jax.tokenizers import encode
from grpo_jax.training import load_reward_model as judges
from grpo_jax.training import reward_model
from grpo_jax.training import rl as trainer
from grpo_jax.training.experiment import build
from grpo_jax.training.loading import load

C = dataclasses.replace(reference.TINY, layers=1)
P, S, T = 3, 5, 4
PROMPTS = reference.make_prompts([5, 2, 3], S, C.vocab_size)
rng = np.random.default_rng(0)
TOKENS = rng.integers(1, C.vocab_size, (P, 2, T)).astype(np.int32)
MASK = np.arange(T) < np.array([[4, 2], [1, 3], [3, 4]])[..., None]
BODY = reference.random_params(C)
VALUE = rng.normal(size=C.hidden).astype(np.float32)


def load_reward_model(folder, ex):
    """The reward model in a folder, for completions of an experiment."""
    return judges.load_reward_model(folder, ex.reader, ex.model.config)


def test_loss_and_gradient_are_bradley_terrys():
    body = {k: v for k, v in BODY.items() if k != "head"}
    params = jax.tree.map(jnp.asarray, {"body": body, "value": VALUE})
    of = partial(reward_model.pair_loss, Decoder(C), P, None)
    run = jax.jit(jax.value_and_grad(of, has_aux=True))
    (loss, metrics), gradient = run(params, PROMPTS, TOKENS, MASK)

    def numpy_loss(value):
        """A head whose first row is `value` says the reward where the decoder says logits."""
        head = np.zeros((C.vocab_size, C.hidden))
        head[0] = value
        longer = np.pad(TOKENS, ((0, 0), (0, 0), (0, 1)))
        all_of_it = np.arange(T + 1) <= MASK.sum(-1)[..., None]  # and the place after the last
        logits = reference.completion_logits({**BODY, "head": head}, C, PROMPTS, longer, all_of_it)
        rewards = np.take_along_axis(logits[..., 0], MASK.sum(-1)[..., None], -1)[..., 0]
        margin = rewards[:, 0] - rewards[:, 1]
        return np.log1p(np.exp(-margin)).mean(), (margin > 0).mean(), margin.mean()

    want = numpy_loss(VALUE)
    found = [metrics[name] for name in ("loss", "accuracy", "margin")]
    np.testing.assert_allclose(found, want, atol=1e-4)
    assert float(loss) == pytest.approx(want[0], abs=1e-4)
    aim = rng.normal(size=C.hidden)
    sides = [numpy_loss(VALUE + e * aim)[0] for e in (1e-6, -1e-6)]
    slope = (sides[0] - sides[1]) / 2e-6
    assert float(gradient["value"] @ aim) == pytest.approx(slope, rel=1e-3)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient["body"]))
    in_parts = jax.jit(partial(micro_batched, of, accumulation=P))
    found = in_parts(params, (PROMPTS, TOKENS, MASK))
    chex.assert_trees_all_close(tuple(found), (gradient, metrics), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Whoever writes more sevens is preferred."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    with path.open("w") as file:
        for i in range(300):
            few, many = sorted(
                ("".join(draw.choice("07") for _ in range(6)) for _ in range(2)),
                key=lambda text: text.count("7"),
            )
            if few.count("7") < many.count("7"):
                record = {"prompt": f"{i}=", "chosen": many, "rejected": few}
                file.write(json.dumps(record) + "\n")
    return path


def config_of(pairs, **changes):
    options = {
        **{"rollout.prompts": 16, "rollout.max_tokens": 8, "steps": 30, "checkpoint.every": 15},
        **{"eval.every": 15, "eval.problems": 30, "optimizer.learning_rate": 1e-2},
        **{"task": {"name": "pairs", "path": str(pairs), "heldout_fraction": 0.2}},
    }
    return tiny_config(**options | changes)


def test_a_reward_model_learns_to_order_pairs_and_goes_on_exactly(pairs, tmp_path):
    config = config_of(pairs)
    reward_model.train(config, tmp_path / "whole")
    evals = [json.loads(line) for line in (tmp_path / "whole/eval.jsonl").open()]
    assert not undocumented(tmp_path / "whole/metrics.jsonl", tmp_path / "whole/eval.jsonl")
    assert evals[0]["accuracy"] == 0 and evals[-1]["accuracy"] > 0.8  # at first all are equal
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/checkpoints/30")
    reward_model.train(config, tmp_path / "again")
    two = [restore_params(tmp_path / name / "checkpoints")[0] for name in ("whole", "again")]
    jax.tree.map(np.testing.assert_array_equal, *two)


def test_other_tasks_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"config.task.name='addition': a reward model needs a task of pairs"
    ):
        reward_model.train(tiny_config(), tmp_path / "run")


def test_a_task_of_pairs_names_bad_records(pairs, tmp_path):
    task = make_task("pairs", path=str(pairs), heldout_fraction=0.2)
    assert not {p.prompt for p in task.train} & {p.prompt for p in task.heldout}
    problem = task.train[0]
    chosen, rejected = problem.columns["chosen"], problem.columns["rejected"]
    assert task.solve(problem) == chosen
    assert task.accuracy([None] * 2, [chosen, rejected], chosen=[chosen] * 2) == [1.0, 0.0]
    bad = tmp_path / "bad.jsonl"
    for record, message in (
        ({"prompt": "p", "chosen": "a"}, r"bad.jsonl:1: unknown column 'rejected'"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "are the same text"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "column 'prompt' is 3; valid: text"),
    ):
        bad.write_text(json.dumps(record) + "\n")
        with pytest.raises((ValueError, UsageError), match=message):
            make_task("pairs", path=str(bad))


def test_a_policy_learns_what_a_reward_model_prefers(pairs, tmp_path, capsys):
    config = config_of(pairs, **{"eval.every": 0})
    reward_model.train(config, tmp_path / "judge")
    reward_model.train(config, tmp_path / "judge")
    assert "judge is finished: all 30 steps are done" in capsys.readouterr().out
    judge = load_reward_model(tmp_path / "judge", build(config))
    problems = [Problem("12="), Problem("7=")]
    scores = judge(problems, [["777777", "700000"], ["000000", "077777"]])
    assert scores[0, 0] > scores[0, 1] and scores[1, 1] > scores[1, 0]

    name = f"{judges.PREFIX}{tmp_path / 'judge'}"
    changes = {"steps": 12, "rewards": {name: 1.0}, "eval.every": 0, "algorithm.beta": 0.0}
    trainer.train(config_of(pairs, **changes | {"rollout.max_tokens": 6}), tmp_path / "policy")
    records = [json.loads(line) for line in (tmp_path / "policy/metrics.jsonl").open()]
    first, last = (np.mean([r["reward"] for r in part]) for part in (records[:3], records[-3:]))
    assert last > first + 0.5, (first, last)
    assert records[0][f"rewards/{name}/mean"] == pytest.approx(records[0]["reward"], abs=1e-5)
    with pytest.raises(UsageError, match="that run's model writes and does not score"):
        load_reward_model(tmp_path / "policy", build(config))
    with pytest.raises(UsageError, match="holds a reward model, which scores and does not write"):
        load(tmp_path / "judge")

    changes = {"start": str(tmp_path / "judge"), "steps": 0, "seed": 1, "eval.every": 0}
    reward_model.train(config_of(pairs, **changes), tmp_path / "next")
    two = [restore_params(tmp_path / name / "checkpoints")[0] for name in ("judge", "next")]
    jax.tree.map(np.testing.assert_array_equal, *two)
    with pytest.raises(UsageError, match=r"the run in .*judge has another model: body/embed"):
        wider = {"model.hidden": 32, "model.head_dim": 0}
        reward_model.train(config_of(pairs, **changes, **wider), tmp_path / "wider")


def test_a_judge_of_answers_reads_no_thoughts(tmp_path):
    path = tmp_path / "pairs.jsonl"
    records = [
        {"prompt": f"{i}=", "chosen": f"<think>{i}</think>77", "rejected": "<think>7</think>07"}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    problems = [Problem("12="), Problem("7=")]
    texts = [["<think>1</think>70", "<think>2</think>70", "70", "<think>70"]] * 2
    changes = {"task.judged": "answer", "steps": 2, "eval.every": 0}
    reward_model.train(config_of(path, **changes), tmp_path / "run")
    asked = build(config_of(path))
    answer = load_reward_model(tmp_path / "run", asked)(problems, texts)
    saved = tmp_path / "run/config.json"
    saved.write_text(saved.read_text().replace('"judged": "answer"', '"judged": "whole"'))
    whole = load_reward_model(tmp_path / "run", asked)(problems, texts)
    assert (answer[:, 0] == answer[:, 1]).all() and (whole[:, 0] != whole[:, 1]).all()
    # Nothing is gained by giving none.
    np.testing.assert_allclose(answer[:, 2:], np.repeat(answer[:, :1] - 1, 2, 1), rtol=1e-6)


def test_what_has_nothing_to_judge_is_below_all_that_has():
    rewards = np.array([[3, -2, 9], [5, 5, 5], [7, 8, 0]], np.float32)
    judged = np.array([[True, True, False], [False] * 3, [True, True, False]])
    want = [[3, -2, -3], [-3, -3, -3], [7, 8, 6]]
    np.testing.assert_array_equal(reward_models.lowest(rewards, judged), want)
    assert np.isnan(reward_models.lowest(rewards, np.zeros((3, 3), bool))).all()


def test_a_judge_sees_what_asks_for_it_in_batches_of_few_sizes():
    seen = []

    def judge(problems, completions):
        seen.append(problems)
        return np.array([[float(problem)] * 2 for problem in problems], np.float32)

    mesh = SimpleNamespace(shape={"data": 2, "fsdp": 1, "tensor": 1})
    ex, problems, texts = SimpleNamespace(mesh=mesh), list("123456"), [["", ""]] * 6
    for asked, wanted in (
        ("000000", None),
        ("001000", "33"),
        ("101000", "13"),
        ("101001", "1361"),
        ("111110", "123451"),
        ("111111", "123456"),
    ):
        mask = [one == "1" for one in asked]
        found = reward_models.only(judge, ex.mesh, mask)(problems, texts)
        want = np.where(mask, np.arange(1.0, 7.0), np.nan)
        np.testing.assert_array_equal(found, np.repeat(want[:, None], 2, 1))
        assert ("".join(seen.pop()) if seen else None) == wanted


def test_a_judge_without_finite_scores_is_named(monkeypatch, tmp_path):
    ex = build(tiny_config())
    reader = ex.reader
    model = reward_models.RewardModel(
        name=f"{judges.PREFIX}x", model=ex.model, params={}, reader=reader
    )
    monkeypatch.setattr(judges, "_of_run", lambda *_: model)
    monkeypatch.setattr(reward_models, "rewards", lambda *_: np.array([[1.0, np.nan]]))
    message = r"reward 'reward_model:.*' gives nan; prompt: '1='; completion: '7'; va"
    with pytest.raises(RewardError, match=message):
        load_reward_model(tmp_path, ex)([Problem("1=")], [["6", "7"]])


@pytest.mark.parametrize("pads", [True, False])
@pytest.mark.parametrize("name", ["Llama", "Qwen2"])
def test_transformers_scores_as_we_do_and_its_files_come_back(name, pads, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch, of the extra grpo_jax[test]")
    transformers = pytest.importorskip("transformers", reason="needs grpo_jax[hf]")
    config = tiny_config(**{"rollout.max_tokens": 8, "model.qkv_bias": name == "Qwen2"})
    ex = build(config)
    if not pads:  # as in many published tokenizers, which end with what they pad with
        ex = dataclasses.replace(
            ex, tokenizer=dataclasses.replace(ex.tokenizer, pad=ex.tokenizer.stop[0])
        )
    params = init_critic("network", ex.model.config, reference.random_params(ex.model.config))
    params["value"] = jax.random.normal(jax.random.key(1), params["value"].shape)
    save_model(tmp_path, *judges.scoring_params(ex.origin, params), None, ex.tokenizer)
    assert judges.is_scoring(tmp_path)

    problems, texts = [Problem("12+3="), Problem("7+9=")], [["15", "7"], ["<think>1", ""]]
    batch = reward_models.encode_pairs(ex.reader, problems, texts)
    ours = np.asarray(reward_models.rewards(ex.model, params, *batch))
    again = load_reward_model(tmp_path, ex)(problems, texts)
    np.testing.assert_allclose(again, ours, atol=1e-5)

    kind = transformers.AutoModelForSequenceClassification
    model = kind.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(model).__name__ == f"{name}ForSequenceClassification"
    rows = [
        [*encode(ex.tokenizer, p.prompt), *encode(ex.tokenizer, t), ex.tokenizer.stop[0]]
        for p, group in zip(problems, texts, strict=True)
        for t in group
    ]
    longest = max(map(len, rows))
    padded = torch.tensor([row + [ex.tokenizer.pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        if pads:
            theirs = model(padded, attention_mask=mask).logits
        else:
            theirs = torch.cat([model(torch.tensor([row])).logits for row in rows])
    np.testing.assert_allclose(theirs.numpy().reshape(2, 2), ours, atol=1e-4)


def test_adapters_learn_to_score_and_go_on_exactly(pairs, tmp_path):
    plain = build(config_of(pairs))
    random = jax.tree.map(jnp.asarray, reference.random_params(plain.model.config))
    save_model(tmp_path / "model", plain.model.config, random, None, plain.tokenizer)
    changes = {"model.path": str(tmp_path / "model"), "model.lora.rank": 2, "steps": 4}
    config = config_of(pairs, **changes, **{"checkpoint.every": 2, "eval.every": 4})
    reward_model.train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/checkpoints/4")
    reward_model.train(config, tmp_path / "again")
    two = [restore_params(tmp_path / name / "checkpoints")[0] for name in ("whole", "again")]
    jax.tree.map(np.testing.assert_array_equal, *two)
    names = {path[-1] for path in flax.traverse_util.flatten_dict(two[0])}
    assert names == {"value", "lora_a", "lora_b"}

    ex, params, _ = load(tmp_path / "whole", scores=True)
    save_model(tmp_path / "out", *judges.scoring_params(ex.origin, params), ex.source, ex.tokenizer)
    asked = [Problem("12="), Problem("7=")], [["7707", "70"], ["0", "077"]]
    ours, merged = (load_reward_model(tmp_path / name, ex)(*asked) for name in ("whole", "out"))
    np.testing.assert_allclose(ours, merged, atol=1e-5)
    assert np.ptp(ours) > 1e-3
