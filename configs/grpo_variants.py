"""GRPO beside its relatives: the same task, model, start, prompts and number of completions.

    python -m experiments.compare --config=configs/grpo_variants.py --seeds=5
    python -m experiments.train --config=configs/grpo_variants.py --workdir=runs/grpo
    python -m experiments.train --config=configs/grpo_variants.py:dapo --workdir=runs/dapo

All make four updates a rollout, without which every ratio is 1 and no clip sets in, with
no KL term and no dynamic sampling. A variant such as `dapo@1e-3` has another learning rate than the
one that a search found. What was found is in docs/results/grpo_variants.md.
"""

from configs._compared import START, compared

RATES = {
    **{"grpo": 1.25e-4, "dr_grpo": 1.25e-4, "dapo": 1.25e-4, "gspo": 6e-5, "cispo": 6e-5},
    **{"rloo": 6e-5, "reinforce_pp": 2.5e-4},
}
VARIANTS = tuple(RATES)


def get_config(variant="grpo"):
    config = compared(variant)
    if variant == START:
        return config
    name, *rate = variant.split("@")
    config.algorithm.preset = name
    config.algorithm.minibatches = 4
    config.optimizer.learning_rate = float(rate[0]) if rate else RATES[name]
    return config
