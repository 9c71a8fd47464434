"""Group Relative Policy Optimization for language models, in JAX: the group is an axis.

The public names, for notebooks; each is imported when it is first used.

    config = grpo_jax.load_config("configs/quick.py", {"steps": 40})
    run = grpo_jax.train(config, "runs/quick", rewards=[my_reward])
    run.metrics[-1]["reward"]
    grpo_jax.sample(run.model, ["3+4="], n=4, temperature=1.0).texts
    grpo_jax.evaluate(run, problems=100)["accuracy"]
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo_jax.config.load import load_config
    from grpo_jax.errors import UsageError
    from grpo_jax.runs.trackers.base import Tracker
    from grpo_jax.tasks import Problem, Task, make_task
    from grpo_jax.training.asking import Sampled, evaluate, sample
    from grpo_jax.training.loading import Model, SavedRun, load_model, load_run
    from grpo_jax.training.rl import TrainStep, steps, train

_HOMES = {
    "Model": "grpo_jax.training.loading",
    "Problem": "grpo_jax.tasks",
    "Sampled": "grpo_jax.training.asking",
    "SavedRun": "grpo_jax.training.loading",
    "Task": "grpo_jax.tasks",
    "Tracker": "grpo_jax.runs.trackers.base",
    "TrainStep": "grpo_jax.training.rl",
    "UsageError": "grpo_jax.errors",
    "evaluate": "grpo_jax.training.asking",
    "load_config": "grpo_jax.config.load",
    "load_model": "grpo_jax.training.loading",
    "load_run": "grpo_jax.training.loading",
    "make_task": "grpo_jax.tasks",
    "sample": "grpo_jax.training.asking",
    "steps": "grpo_jax.training.rl",
    "train": "grpo_jax.training.rl",
}
__all__ = [
    "Model",
    "Problem",
    "Sampled",
    "SavedRun",
    "Task",
    "Tracker",
    "TrainStep",
    "UsageError",
    "evaluate",
    "load_config",
    "load_model",
    "load_run",
    "make_task",
    "sample",
    "steps",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'grpo_jax' has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
