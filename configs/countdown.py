"""placeholder"""

from grpo_jax.config import defaults


def get_config():
    config = defaults()
    config.task = {"name": "countdown", "count": 3}
    config.prompt_length = 24
    config.model.layers = 4
    config.model.ff = 384
    config.rollout.max_tokens = 80
    config.sft.steps = 300
    config.sft.learning_rate = 2e-3
    config.algorithm.beta = 0.0
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 5
    config.eval.every = 20
    return config
