"""Process beside outcome supervision, as in figure 5 of DeepSeekMath (2402.03300).

    python -m experiments.compare --config=configs/process_vs_outcome.py --seeds=5
    python -m experiments.train --config=configs/process_vs_outcome.py --workdir=runs/o
    python -m experiments.train --config=configs/process_vs_outcome.py:process --workdir=runs/p

`process` rewards every column of the sum beside the answer, each 1 or 0 as the answer is, so that
the groups of both variants teach nothing where everything is right. What was found is in
docs/results/process_vs_outcome.md.
"""

from configs._compared import START, compared

VARIANTS = ("outcome", "process")


def get_config(variant="outcome"):
    config = compared(variant)
    if variant == START:
        return config
    config.algorithm.preset = {"outcome": "grpo", "process": "grpo_process"}[variant]
    config.rewards = {"accuracy": 1.0}
    config.optimizer.learning_rate = 2.5e-4
    return config
