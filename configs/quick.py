"""Two-digit addition in a minute or two, for a first look: `default.py`, made small.

    make train CONFIG=configs/quick.py
    python -m experiments.train --config=configs/quick.py --config.seed=1 --workdir=runs/quick1

Held-out greedy accuracy on 256 problems, 95% intervals, one run on 2 cores; seconds of `make train`
with compilation, without set-up:

    seed   after the cold start   after GRPO              seconds
    0      0.434 [0.374, 0.495]   0.695 [0.636, 0.748]    83
"""

from grpo_jax.config import defaults


def get_config():
    config = defaults()
    config.task.digits = 2
    config.task.heldout_size = 256
    config.prompt_length = 6
    config.model.layers = 2
    config.model.ff = 256
    config.rollout.max_tokens = 26
    config.rollout.prompt_bucket = 6
    config.rollout.temperature = 0.5
    config.sft.steps = 150
    config.sft.stop_accuracy = 0.4
    config.sft.learning_rate = 2e-3
    config.steps = 40
    config.algorithm.beta = 0.0
    config.algorithm.dynamic_sampling_rounds = 1
    config.optimizer.learning_rate = 5e-4
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 3
    config.eval.every = 40
    config.eval.problems = 256
    config.checkpoint.every = 40
    return config
