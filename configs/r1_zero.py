"""R1-Zero in small: reinforcement learning on the base model, without a cold start (2501.12948).

    python -m experiments.r1 --config=configs/r1_zero.py --seeds=3 --workdir=runs/r1_zero

The base model, problems and steps of `r1_tiny.py`. As in the paper the rewards are accuracy and
format; then again from the base model with r1_tiny's reward for language. What was found is in
docs/results/r1_zero.md. (`--config=configs/r1_tiny.py --without=cold_start` leaves the cold start
out of the whole pipeline.)
"""

from configs import r1_tiny
from configs.r1_tiny import JUDGES, MEASURED_ON, REJECTION, prepare  # noqa: F401

STAGES = ("base", *JUDGES, "zero", "zero_language")
STARTS = {**dict.fromkeys(JUDGES, "base"), "zero": "base", "zero_language": "base"}


def get_config(stage="base", folder="runs/r1_zero"):
    if stage not in ("zero", "zero_language"):
        return r1_tiny.get_config(stage, folder)
    config = r1_tiny.get_config("reasoning_rl", folder)
    config.start = f"{folder}/base"
    if stage == "zero":
        del config.rewards["language"]
        for part in config.task.parts.values():
            part.rewards = tuple(name for name in part.rewards if name in config.rewards)
    return config
