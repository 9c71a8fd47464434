"""Between devices and this host: the only place of the package that asks JAX for either."""

from typing import TypeVar

import jax

T = TypeVar("T")


def fetch(tree: T) -> T:
    """A pytree with its arrays on this host, as NumPy's."""
    return jax.device_get(tree)
