"""SmolLM2-135M-Instruct learns one-step word problems: a real pretrained model, on a laptop.

    make smollm2
    python -m experiments.train --config=configs/smollm2.py --config.seed=1 --workdir=runs/smol1

The published weights and chat template, no cold start. Greedy accuracy on 256 unseen problems:
0.027 [0.013, 0.055] before, 0.758 [0.702, 0.806] after 56 steps (seed 0, the one run so far). On
2 cores the steps took 27.2 minutes, 28 s each, and the whole command 30.6, with evaluations and
checkpoints every 14 steps instead of 28.

The limit of 16 tokens is part of the task: the model must learn to state the sum at once. As it
comes, it is still introducing its answer there.
"""

from grpo_jax.config import defaults


def get_config():
    config = defaults()
    config.model.path = "models/SmolLM2-135M-Instruct"
    config.model.dtype = "bfloat16"
    config.task.name = "word_problems"
    config.task.template = "chat"
    config.task.heldout_size = 256
    config.rewards = {"accuracy": 1.0}
    config.prompt_length = 80
    config.rollout.prompts = 16
    config.rollout.group = 8
    config.rollout.max_tokens = 16
    config.rollout.prompt_bucket = 64
    config.steps = 72
    config.algorithm.beta = 0.0
    config.algorithm.dynamic_sampling_rounds = 1
    config.optimizer.learning_rate = 3e-5
    config.optimizer.schedule = "linear"
    config.optimizer.end_factor = 0.1
    config.optimizer.warmup_steps = 3
    config.eval.every = 36
    config.eval.problems = 256
    config.checkpoint.every = 36
    return config
