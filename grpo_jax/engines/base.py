"""What an engine is: parameters and prompts in, groups of completions out.

P prompts, G group, S prompt length, T completion length.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from grpo_jax.engines.filters import Sampling
from grpo_jax.types import Params, Prompts, Rollouts


class Engine(Protocol):
    """Generates tokens.

    The same keys give the same tokens, whichever engine: a completion's noise depends on its own
    key and on the position in it, and on nothing else. Padding, neighbours, the size of a batch,
    devices and restarts do not change it.

    One that counts something of its own puts it into the Rollouts' extras, and may have a method
    `metrics(rollouts) -> dict[str, float]` that says what each step logs of it.
    """

    def generate(
        self, params: Params, prompts: Prompts, keys: Key[Array, "P G"], sampling: Sampling
    ) -> Rollouts:
        """A completion for each key."""


def completion_keys(
    rng: Key[Array, ""], step: int, places: Int[np.ndarray, " P"], group: int
) -> Key[Array, "P G"]:
    """The keys of completions, from a run's rng, a step, the place of each prompt in the step, and
    the completion's number in its group."""
    of_step = jax.random.fold_in(rng, step)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(fold, (0, None))(fold(of_step, places), jnp.arange(group))
