"""The policy's parameters: which the optimizer moves, which stay, and what a checkpoint keeps."""

from collections.abc import Callable

import flax
from flax import struct

from grpo_jax.models.lora import ADAPTERS
from grpo_jax.types import Params, merged

BIAS = "router_bias"


class Policy(struct.PyTreeNode, kw_only=True):
    """A policy's parameters, in three nested dicts without common leaves.

    trained  those that the optimizer moves; with adapters (LoRA), the adapters only
    router   experts' auxiliary-loss-free biases, which no optimizer touches, or None
    base     those under adapters, which stay as they are, or None
    """

    trained: Params
    router: Params | None = None
    base: Params | None = None

    @property
    def full(self) -> Params:
        """All parameters, as the model takes them."""
        return merged(self.base, self.router, self.trained)

    @property
    def frozen(self) -> Params:
        """Those that the optimizer does not move; may be an empty dict."""
        return merged(self.base, self.router)

    @property
    def saved(self) -> "Policy":
        """What a checkpoint keeps: the base is where it was read from."""
        return self.replace(base=None)


def split(params: Params) -> Policy:
    """The Policy of a model's parameters."""
    flat = flax.traverse_util.flatten_dict(params)
    adapters = any(path[-1] in ADAPTERS for path in flat)

    def subtree(chosen: Callable[[str], bool]) -> Params | None:
        leaves = {path: x for path, x in flat.items() if chosen(path[-1])}
        return flax.traverse_util.unflatten_dict(leaves) if leaves else None

    if adapters:  # what routes the frozen experts is frozen too
        return Policy(
            trained=subtree(ADAPTERS.__contains__) or {},
            base=subtree(lambda name: name not in ADAPTERS),
        )
    return Policy(
        trained=subtree(lambda name: name != BIAS) or {}, router=subtree(lambda name: name == BIAS)
    )
