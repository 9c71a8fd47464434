"""Process beside outcome supervision, as in figure 5 of DeepSeekMath (2402.03300).

    python -m experiments.compare --config=configs/process_vs_outcome.py --seeds=5
    python -m experiments.train --config=configs/process_vs_outcome.py --workdir=runs/o
    python -m experiments.train --config=configs/process_vs_outcome.py:process --workdir=runs/p

`process` rewards every column of the sum beside the answer, each 1 or 0 as the answer is, so that
the groups of both variants teach nothing where everything is right.
"""

from configs.quick import get_config as quick

VARIANTS = ("outcome", "process")


def get_config(variant="outcome"):
    config = quick()
    config.algorithm.preset = {"outcome": "grpo", "process": "grpo_process"}[variant]
    config.algorithm.dynamic_sampling_rounds = 0
    config.rewards = {"accuracy": 1.0}
    config.eval.every = 5
    return config
