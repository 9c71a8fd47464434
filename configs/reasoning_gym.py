"""reasoning_gym's spell_backward as it comes."""

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
