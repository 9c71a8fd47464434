"""placeholder"""

from grpo_jax.config import defaults


def get_config():
    config = defaults()
    config.task = {"name": "reasoning_gym", "dataset": "spell_backward", "min_word_len": 3, "max_word_len": 5}
    config.rewards = {"accuracy": 1.0}
    config.prompt_length = 64
    config.model.layers = 3
    config.model.ff = 320
    config.rollout.max_tokens = 8
    config.sft.steps = 150
    config.sft.batch = 128
    config.sft.learning_rate = 2e-3
    config.algorithm.beta = 0.0
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 5
    config.eval.every = 20
    return config
