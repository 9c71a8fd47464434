"""A run's newest checkpoint, ready to be asked and measured on one device."""

from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from grpo_jax import checkpoints
from grpo_jax.experiment import Experiment, build
from grpo_jax.runs import load_config


def load(workdir: Path) -> tuple[Experiment, Any, int]:
    """Return (experiment, params, step) of the run in `workdir`, whatever mesh it trained on.

    Raises UsageError where there is no run, or no whole checkpoint in it.
    """
    plain = load_config(workdir).to_dict()
    plain["mesh"] = dict.fromkeys(plain["mesh"], 1)
    params, step = checkpoints.restore_params(workdir / "checkpoints")
    return build(FrozenConfigDict(plain)), params, step
