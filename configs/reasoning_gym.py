"""spell_backward of reasoning_gym as it comes: its words, prompts and scorer, from random weights.

    make reasoning_gym
    make train CONFIG=configs/reasoning_gym.py
    python -m experiments.train --config=configs/reasoning_gym.py --config.seed=1 --workdir=runs/rg1

A cold start on the bare answers, ended at 50% on training words, then GRPO (no KL term). The
library's scorer gives a letter in its place its share, and hardly minds what follows the word; a
soft length limit (DAPO) keeps the policy from never stopping. Accuracy counts words that score 1,
greedily, of 512 held-out ones; 95% intervals, one run a seed on 2 cores:

    seed   after the cold start   after GRPO
    0      0.455 [0.412, 0.498]   0.594 [0.551, 0.635]
    1      0.486 [0.443, 0.530]   0.682 [0.640, 0.721]
    2      0.408 [0.366, 0.451]   0.615 [0.572, 0.656]
"""

from grpo_jax.config import defaults


def get_config():
    config = defaults()
    config.task.name = "reasoning_gym"
    config.task.dataset = "spell_backward"
    config.task.heldout_size = 512
    config.rewards = {"accuracy": 1.0}
    config.prompt_length = 64
    config.model.layers = 3
    config.model.ff = 320
    config.rollout.max_tokens = 16
    config.sft.steps = 1000
    config.sft.batch = 64
    config.sft.stop_accuracy = 0.5
    config.sft.check_every = 25
    config.sft.learning_rate = 2e-3
    config.steps = 150
    config.algorithm.beta = 0.0
    config.algorithm.overlong_cache = 0.25
    config.optimizer.learning_rate = 6e-4
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 5
    config.eval.every = 50
    config.checkpoint.every = 50
    return config
