"""GRPO beside PPO with a critic: the same task, model, start, prompts and number of completions.

    python -m experiments.compare --config=configs/grpo_vs_ppo.py --seeds=5
    python -m experiments.train --config=configs/grpo_vs_ppo.py --workdir=runs/grpo
    python -m experiments.train --config=configs/grpo_vs_ppo.py:ppo --workdir=runs/ppo

PPO's critic is a network of the policy's size (`ppo`) or a head on the policy (`ppo_head`). A
variant such as `ppo@5e-4` has another learning rate, `ppo@5e-4@1e-3` the critic's own too. What was
found is in docs/results/grpo_vs_ppo.md.
"""

from configs._compared import START, compared

VARIANTS = ("grpo", "ppo", "ppo_head")


def get_config(variant="grpo"):
    config = compared(variant)
    if variant == START:
        return config
    name, *rates = variant.split("@")
    rates = rates or ["2.5e-4", "1e-3"]
    config.optimizer.learning_rate = float(rates[0])
    if name == "ppo":  # whose critic has a separate optimizer and learning rate
        config.optimizer.critic_learning_rate = float(rates[-1])
    if name != "grpo":
        config.algorithm.preset = "ppo"
        config.algorithm.critic = "head" if name == "ppo_head" else "network"
        config.algorithm.minibatches = 1
    return config
