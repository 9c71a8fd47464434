"""GRPO beside PPO with a critic: the same task, model, prompts and number of completions.

    python -m experiments.compare --config=configs/grpo_vs_ppo.py --seeds=5
    python -m experiments.train --config=configs/grpo_vs_ppo.py --workdir=runs/grpo
    python -m experiments.train --config=configs/grpo_vs_ppo.py:ppo --workdir=runs/ppo

PPO's critic is a network of the policy's size (`ppo`) or a head on the policy (`ppo_head`).
"""

from configs.quick import get_config as quick

VARIANTS = ("grpo", "ppo", "ppo_head")


def get_config(variant="grpo"):
    config = quick()
    config.algorithm.dynamic_sampling_rounds = 0
    config.eval.every = 5
    if variant == "grpo":
        return config
    config.algorithm.preset = "ppo"
    config.algorithm.critic = "head" if variant == "ppo_head" else "network"
    config.algorithm.minibatches = 1
    return config
