"""Groups of 2 to 32 completions, of one number of completions a step.

    python -m experiments.compare --config=configs/group_size.py --seeds=5
    python -m experiments.train --config=configs/group_size.py --workdir=runs/g8
    python -m experiments.train --config=configs/group_size.py:g32 --workdir=runs/g32

256 completions a step: G of each of 256 / G prompts. The learning rate is what grpo_vs_ppo.py's
search found for G = 8. What was found is in docs/results/group_size.md.
"""

from configs._compared import START, compared

VARIANTS = ("g8", "g2", "g4", "g16", "g32")  # the first is what others are compared with


def get_config(variant="g8"):
    config = compared(variant)
    if variant == START:
        return config
    config.optimizer.learning_rate = 2.5e-4
    config.rollout.group = int(variant.removeprefix("g"))
    config.rollout.prompts = 256 // config.rollout.group
    return config
