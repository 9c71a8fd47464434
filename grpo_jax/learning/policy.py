"""The policy's parameters: which the optimizer moves, which stay, and what a checkpoint keeps."""

from collections.abc import Callable
from typing import Any

import flax
from flax import struct

from grpo_jax.models.lora import ADAPTERS
from grpo_jax.types import merged

BIAS = "router_bias"


class Policy(struct.PyTreeNode, kw_only=True):
    """A policy's parameters, in three nested dicts without common leaves.

    trained  those that the optimizer moves; with adapters (LoRA), the adapters only
    router   experts' auxiliary-loss-free biases, which no optimizer touches, or None
    base     those under adapters, which stay as they are, or None
    """

    trained: Any
    router: Any = None
    base: Any = None

    @property
    def full(self) -> Any:
        """All parameters, as the model takes them."""
        return merged(self.base, self.router, self.trained)

    @property
    def frozen(self) -> Any:
        """Those that the optimizer does not move; may be an empty dict."""
        return merged(self.base, self.router)

    @property
    def saved(self) -> "Policy":
        """What a checkpoint keeps: the base is where it was read from."""
        return self.replace(base=None)


def split(params: Any) -> Policy:
    """The Policy of a model's parameters."""
    flat = flax.traverse_util.flatten_dict(params)
    adapters = any(path[-1] in ADAPTERS for path in flat)

    def part(chosen: Callable[[str], bool]) -> Any:
        leaves = {path: x for path, x in flat.items() if chosen(path[-1])}
        return flax.traverse_util.unflatten_dict(leaves) if leaves else None

    if adapters:  # what routes the frozen experts is frozen too
        return Policy(
            trained=part(ADAPTERS.__contains__), base=part(lambda name: name not in ADAPTERS)
        )
    return Policy(trained=part(lambda name: name != BIAS), router=part(lambda name: name == BIAS))
