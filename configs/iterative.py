"""Iterative GRPO (DeepSeekMath, 2402.03300, Algorithm 1) on `quick.py`'s two-digit addition.

    python -m experiments.iterate --config=configs/iterative.py --problems=1024
    python -m experiments.train --config=configs/iterative.py --workdir=runs/without_judge

Held-out accuracy with 95% intervals, the reward model's on pairs, the policy's greedy on 256
problems; seed 0, two to three minutes on 2 cores:

    iteration   reward model            policy
    0                                   0.438 [0.378, 0.499]
    1           0.622 [0.541, 0.696]    0.445 [0.386, 0.507]
    2           0.543 [0.457, 0.626]    0.535 [0.474, 0.595]

Whether a sum is right is hard to see for two layers, so this shows how it is done, not that it
helps: accuracy is rewarded beside, and a policy that follows only such a reward model gets worse.
"""

from configs.quick import get_config as quick


def get_config(name="policy"):
    """The config of 'policy', of 'policy:RUN', rewarded by the reward model in RUN too, or of
    'reward_model:RUN', which starts from the policy in RUN."""
    config = quick()
    kind, _, run = name.partition(":")
    if kind == "reward_model":
        config.task = {"name": "pairs", "path": "", "replay": ()}
        config.start = run
        config.sft.steps = 0
        config.steps = 100
        config.rollout.prompts = 64
        config.optimizer.learning_rate = 1e-3
        config.eval.every = config.checkpoint.every = 100
        return config
    if run:
        config.rewards[f"reward_model:{run}"] = 0.1
    config.steps = 20
    config.algorithm.beta = 0.02
    # Divided by its spread, a group without a right completion would follow the reward model only.
    config.algorithm.advantage = "group_mean"
    config.eval.every = config.checkpoint.every = 20
    return config
