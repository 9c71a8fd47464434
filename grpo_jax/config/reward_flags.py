"""The flags --config.rewards.NAME=WEIGHT, of names that ml_collections cannot read."""

import re

from absl import flags
from ml_collections import ConfigDict

from grpo_jax.config.checks import unknown_field, wrong_type
from grpo_jax.errors import UsageError


def take_weights(argv: list[str]) -> dict[str, str]:
    """Take --config.rewards.NAME=WEIGHT out of a command line: {NAME: WEIGHT}.

    ml_collections reads a flag's name as a Python expression, which "pkg.module:function" and
    "reward_model:runs/judge-v1.0" are not.
    """
    options, weights, left = iter(argv), {}, []
    for arg in options:
        if match := re.match(r"--?config\.rewards\.(.+)$", arg, re.DOTALL):
            name, equals, value = match[1].rpartition("=")
            weights[name or value] = value if equals else next(options, "")
        else:
            left.append(arg)
    argv[:] = left  # which ml_collections reads again
    return weights


def check_weights(weights: dict[str, str], config: ConfigDict) -> None:
    """UsageError for the weight of a reward that can be none, or one that is no number."""
    from grpo_jax.rewards.registry import EXTRAS, REWARDS

    known = {"accuracy", *config.get("rewards", {}), *REWARDS, *EXTRAS}
    for name, value in weights.items():
        if name not in known and ":" not in name:
            raise UsageError(
                f"{unknown_field(f'rewards.{name}', [f'rewards.{one}' for one in known])}; or "
                "config.rewards.package.module:function"
            )
        try:
            float(value)
        except ValueError as error:
            raise UsageError(wrong_type(f"rewards.{name}", value, float)) from error


def set_weights(flag_values: flags.FlagValues, weights: dict[str, str]) -> None:
    """Put the weights into the config that was parsed."""
    if weights:
        rewards = flag_values["config"].value.rewards  # type: ignore[union-attr]
        with rewards.ignore_type():  # an integer may become a float
            rewards.update({name: float(weight) for name, weight in weights.items()})
