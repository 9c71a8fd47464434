"""Countdown."""

from grpo_jax.config import defaults


def get_config():
    config = defaults()
    config.task.name = "countdown"
    config.task.max_number = 10
    config.task.max_target = 50
    config.task.heldout_size = 400
    config.prompt_length = 16
    config.model.layers = 3
    config.model.ff = 320
    config.rollout.prompts = 32
    config.rollout.group = 8
    config.rollout.temperature = 0.7
    config.rollout.max_tokens = 80
    config.sft.steps = 400
    config.sft.stop_accuracy = 0.25
    config.sft.check_every = 10
    config.sft.learning_rate = 2e-3
    config.steps = 100
    config.algorithm.beta = 0.0
    config.algorithm.dynamic_sampling_rounds = 1
    config.optimizer.learning_rate = 8e-4
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 5
    config.eval.every = 50
    config.eval.problems = 400
    config.checkpoint.every = 50
    return config
