"""Engines by name, which generate tokens; `base.Engine` is their protocol.

A new one is a file here and a line in ENGINES, or a file anywhere that is named by its import path.
"""

from collections.abc import Callable

from jaxtyping import Array, Int

from grpo_jax.engines.base import Engine, completion_keys
from grpo_jax.engines.filters import Sampling
from grpo_jax.engines.lockstep import Lockstep
from grpo_jax.engines.speculative import Speculative
from grpo_jax.models.decoder import Decoder
from grpo_jax.registry import make

__all__ = ["ENGINES", "Engine", "Sampling", "completion_keys", "make_engine"]

ENGINES: dict[str, Callable[..., Engine]] = {"lockstep": Lockstep, "speculative": Speculative}


def make_engine(name: str, model: Decoder, stops: Int[Array, "N V"] | None = None) -> Engine:
    """The engine of a name or import path; ValueError for an unknown one, or for a model that it
    cannot run.

    stops  the table of stop strings (`engines.stops`), or None
    """
    return make("engine", name, ENGINES, ("generate",), model=model, stops=stops)
