"""One beside two iterations of GRPO, as in figure 6 of DeepSeekMath (2402.03300).

    python -m experiments.compare --config=configs/iterations.py --seeds=5
    python -m experiments.train --config=configs/iterations.py --workdir=runs/one
    python -m experiments.train --config=configs/iterations.py:two --workdir=runs/two

Both make as many steps. `two` replaces the reference of the KL term by the policy half-way
(algorithm 1); there is no reward model here to train anew in between. What was found is in
docs/results/iterations.md.
"""

from configs._compared import START, compared

VARIANTS = ("one", "two")


def get_config(variant="one"):
    config = compared(variant)
    if variant == START:
        return config
    config.optimizer.learning_rate = 2.5e-4
    config.algorithm.beta = 0.04
    config.algorithm.reference_refresh = {"one": 0, "two": config.steps // 2}[variant]
    return config
