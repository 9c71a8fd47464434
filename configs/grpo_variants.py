"""GRPO beside its relatives: the same task, model, start, prompts and number of completions.

    python -m experiments.compare --config=configs/grpo_variants.py --seeds=5
    python -m experiments.train --config=configs/grpo_variants.py --workdir=runs/grpo
    python -m experiments.train --config=configs/grpo_variants.py:dapo --workdir=runs/dapo

All have one update a rollout, no KL term and no dynamic sampling, and the learning rate of
`quick.py`; a variant such as `dapo@1e-3` has another. A sequence's ratio (gspo) and a token's are
both 1 there: what tells them apart needs several updates a rollout.
"""

from configs.quick import get_config as quick

VARIANTS = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp")
START = "cold_start"


def get_config(variant="grpo"):
    config = quick()
    config.algorithm.dynamic_sampling_rounds = 0
    config.eval.every = 5
    if variant == START:
        config.steps = 0
        return config
    config.sft.steps = 0
    name, *rate = variant.split("@")
    config.algorithm.preset = name
    config.algorithm.minibatches = 1
    if rate:
        config.optimizer.learning_rate = float(rate[0])
    return config
