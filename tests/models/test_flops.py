"""FLOPs counted token by token, and the share of a device's rate that a step's come to."""

from types import SimpleNamespace

import numpy as np
import pytest

from grpo_jax.algorithms import Algorithm
from grpo_jax.models import flops
from grpo_jax.models.config import Experts, ModelConfig
from grpo_jax.training import rl_step

SIZES = {"vocab_size": 11, "layers": 2, "hidden": 8, "heads": 2, "kv_heads": 1, "ff": 12}
CONFIG = ModelConfig(head_dim=6, **SIZES)
LENGTHS = np.array([3, 5]), np.array([[2, 4], [1, 7]])
# Of a layer: q and o 8 x 12, k and v 8 x 6, and three of 8 x 12.
LAYERS, HEAD = 2 * (2 * 96 + 2 * 48 + 3 * 96), 8 * 11
PAIR = 2 * 2 * 2 * 2 * 6  # two layers, a score and its use, 2 heads of 6, 2 a product


def passes(skip_last):
    """Every token once; a token sees half of itself, which makes s^2 / 2 of s tokens."""
    total = 0.0
    for s, group in zip(*(x.tolist() for x in LENGTHS), strict=True):
        total += sum(2 * LAYERS + PAIR * (i + 0.5) for i in range(s))
        for t in group:
            total += 2 * HEAD * t
            total += sum(2 * LAYERS + PAIR * (s + i + 0.5) for i in range(t - skip_last))
    return total


def test_every_token_is_counted_once():
    assert flops.matmul_parameters(CONFIG) == (LAYERS, HEAD)
    assert flops.forward_flop(CONFIG, LENGTHS) == pytest.approx(passes(0))
    assert flops.generation_flop(CONFIG, LENGTHS) == pytest.approx(passes(1))
    assert flops.update_flop(CONFIG, LENGTHS, 2, 1) == pytest.approx(7 * passes(0))
    assert flops.is_counted(CONFIG)
    assert not flops.is_counted(ModelConfig(**SIZES, experts=Experts(count=4, active=2, ff=4)))


def test_a_step_says_how_much_of_the_devices_rate_it_used(monkeypatch):
    prompts, completions = (np.arange(8) < length[..., None] for length in LENGTHS)
    rollouts = SimpleNamespace(prompts=SimpleNamespace(mask=prompts), mask=completions)
    graded = SimpleNamespace(episodes=SimpleNamespace(rollouts=rollouts), rounds=1)
    devices = np.array([SimpleNamespace(device_kind="TPU v4")] * 2)
    learner = SimpleNamespace(
        mesh=SimpleNamespace(devices=devices, size=2),
        model=SimpleNamespace(config=CONFIG),
        algorithm=Algorithm(beta=0.1, inner_epochs=2),
        critic=None,
    )
    # Two rounds of sampling; two epochs, the reference, and the policy before them.
    done = 2 * passes(1) + (3 * 2 + 1 + 1) * passes(0)
    found = rl_step.flop_utilization(learner, graded, 0.5)
    assert found == {"time/flop_utilization": pytest.approx(done / (0.5 * 2 * 275e12))}
    devices[0].device_kind = "cpu"
    assert rl_step.flop_utilization(learner, graded, 0.5) == {}
