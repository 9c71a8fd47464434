"""GRPO beside its relatives: the same task, model, start, prompts and number of completions.

    python -m experiments.compare --config=configs/grpo_variants.py --seeds=5
    python -m experiments.train --config=configs/grpo_variants.py --workdir=runs/grpo
    python -m experiments.train --config=configs/grpo_variants.py:dapo --workdir=runs/dapo

All make four updates a rollout, without which every ratio is 1 and no clipping tells them apart,
with no KL term and no dynamic sampling. A variant such as `dapo@1e-3` has another learning rate.
"""

from configs._compared import START, compared

VARIANTS = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp")


def get_config(variant="grpo"):
    config = compared(variant)
    if variant == START:
        return config
    name, *rate = variant.split("@")
    config.algorithm.preset = name
    config.algorithm.minibatches = 4
    if rate:
        config.optimizer.learning_rate = float(rate[0])
    return config
