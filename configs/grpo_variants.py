"""GRPO beside its relatives: the same task, model, start, prompts and number of completions.

    python -m experiments.compare --config=configs/grpo_variants.py --seeds=5
    python -m experiments.train --config=configs/grpo_variants.py --workdir=runs/grpo
    python -m experiments.train --config=configs/grpo_variants.py:dapo --workdir=runs/dapo

All have one update a rollout, no KL term and no dynamic sampling, and the learning rate of
`quick.py`; a variant such as `dapo@1e-3` has another. A sequence's ratio (gspo) and a token's are
both 1 there: what tells them apart needs several updates a rollout.
"""

from configs._compared import START, compared

VARIANTS = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp")


def get_config(variant="grpo"):
    config = compared(variant)
    if variant == START:
        return config
    name, *rate = variant.split("@")
    config.algorithm.preset = name
    config.algorithm.minibatches = 1
    if rate:
        config.optimizer.learning_rate = float(rate[0])
    return config
