"""The script that shows all of GRPO takes the trainer's steps."""

import json

import jax
import numpy as np
from tiny import compile_fast, sevens, tiny_config  # noqa: F401

from experiments import minimal
from grpo_jax.runs.checkpoints import restore_params
from grpo_jax.training import rl as trainer
from grpo_jax.training.experiment import build

STEPS = 3


def test_its_steps_are_the_trainers(tmp_path, monkeypatch, capsys):
    config = tiny_config(
        **{"steps": STEPS, "prompt_length": 32, "rollout.prompt_bucket": 16, "eval.every": 0},
        **{"rewards": {"tiny:sevens": 1.0}},
        **{"algorithm.beta": minimal.BETA, "algorithm.inner_epochs": minimal.UPDATES},
        **{"optimizer.learning_rate": 0.02, "rollout.temperature": minimal.TEMPERATURE},
    )
    for name, value in (("P", 4), ("G", 4), ("T", config.rollout.max_tokens)):
        monkeypatch.setattr(minimal, name, value)
    # An untrained model earns little by the script's own reward.
    judged = lambda question, completions: np.array(sevens(None, completions))  # noqa: E731
    monkeypatch.setattr(minimal, "graded", judged)
    monkeypatch.setattr(minimal, "RATE", config.optimizer.learning_rate)
    model = build(config).model.config
    history, params = minimal.train(STEPS, config.seed, model)
    # A line a step; those about compiling come only where it takes a while.
    assert capsys.readouterr().out.count("step ") == STEPS
    trainer.train(config, tmp_path)
    rewards = [json.loads(line)["reward"] for line in (tmp_path / "metrics.jsonl").open()]
    np.testing.assert_allclose(history, rewards, rtol=1e-6)
    assert len(set(rewards)) > 1
    expected, _ = restore_params(tmp_path / "checkpoints")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, expected)
