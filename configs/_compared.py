"""Shared by the comparisons: the task and budget of `quick.py`, and one cold start a seed."""

from configs.quick import get_config as quick

START = "cold_start"  # the variant that the others start from


def compared(variant):
    """The whole config of START, or the config that another variant changes."""
    config = quick()
    config.algorithm.dynamic_sampling_rounds = 0
    config.eval.every = 5
    if variant == START:
        config.steps = 0
    else:
        config.sft.steps = 0
    return config
