"""One beside two iterations of GRPO, as in figure 6 of DeepSeekMath (2402.03300).

    python -m experiments.compare --config=configs/iterations.py --seeds=5
    python -m experiments.train --config=configs/iterations.py --workdir=runs/one
    python -m experiments.train --config=configs/iterations.py:two --workdir=runs/two

Both make as many steps. `two` replaces the reference of the KL term by the policy half-way
(algorithm 1); there is no reward model here to train anew in between.
"""

from configs.quick import get_config as quick

VARIANTS = ("one", "two")
START = "cold_start"


def get_config(variant="one"):
    config = quick()
    config.eval.every = 5
    config.algorithm.dynamic_sampling_rounds = 0
    if variant == START:
        config.steps = 0
        return config
    config.sft.steps = 0
    config.algorithm.beta = 0.04
    config.algorithm.reference_refresh = {"one": 0, "two": config.steps // 2}[variant]
    return config
