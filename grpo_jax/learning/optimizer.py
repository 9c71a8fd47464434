"""AdamW on clipped gradients, whose numbers are data.

An update compiled for one learning rate, or for one number of steps, serves for all of them: the
numbers are arguments of the program, not constants in it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict, FrozenConfigDict

from grpo_jax.types import Params

NEVER = 2**30


class Schedule(struct.PyTreeNode):
    """What `learning_rate` needs to know; the numbers are Python's, so that bfloat16 stays so.

    kind          constant | linear | cosine, of what follows the warm-up
    peak, end     the learning rate after the warm-up, and at last
    rise, fall    by how much it changes before and after
    warmup, rest  how many updates it takes to rise, and to fall
    """

    kind: str = struct.field(pytree_node=False)
    peak: float
    end: float
    rise: float
    fall: float
    warmup: float
    rest: float


class AdamW(struct.PyTreeNode):
    """The numbers of `adamw`."""

    schedule: Schedule
    b1: float
    b2: float
    eps: float
    weight_decay: float
    max_grad_norm: float


class Optimizer(struct.PyTreeNode):
    """An optax transformation of numbers; a pytree, and no static argument, of a jitted function.

    numbers         a pytree of Python's floats, or None
    transformation  numbers -> optax.GradientTransformation; the same function for all numbers
    """

    numbers: Any
    transformation: Callable[[Any], optax.GradientTransformation] = struct.field(pytree_node=False)

    def init(self, params: Params) -> optax.OptState:
        """The initial state, the same for all numbers."""
        return self.transformation(jax.tree.map(lambda _: 0.0, self.numbers)).init(params)

    def update(
        self, gradient: Params, state: optax.OptState, params: Params
    ) -> tuple[Params, optax.OptState]:
        """What to add to the parameters, and the new state."""
        return self.transformation(self.numbers).update(gradient, state, params)


def make_optimizer(config: ConfigDict | FrozenConfigDict, updates: int) -> Optimizer:
    """AdamW on clipped gradients that skips, and counts, non-finite ones.

    config   the fields of `optimizer` of an experiment
    updates  updates in all, the length of the schedule
    """
    names = ("b1", "b2", "eps", "weight_decay", "max_grad_norm")
    numbers = {name: float(config[name]) for name in names}
    return Optimizer(AdamW(schedule_of(config, updates), **numbers), adamw)


class Applied(struct.PyTreeNode, kw_only=True):
    """What a gradient made of parameters.

    finite   whether the gradient was; else the parameters are as they were
    metrics  grad_norm, learning_rate, skipped_updates in all and skipped_in_a_row
    """

    params: Params
    opt_state: optax.OptState
    finite: Bool[Array, ""]
    metrics: dict[str, Float[Array, ""]]


def apply_gradient(
    optimizer: Optimizer, params: Params, opt_state: optax.OptState, gradient: Params
) -> Applied:
    """The parameters and the optimizer's state after one step of the optimizer."""
    steps, opt_state = optimizer.update(gradient, opt_state, params)
    hyperparams = optax.tree_utils.tree_get(opt_state, "hyperparams")
    return Applied(
        params=optax.apply_updates(params, steps),
        opt_state=opt_state,
        finite=opt_state.last_finite,
        metrics={
            "grad_norm": optax.tree.norm(gradient),
            "learning_rate": hyperparams["learning_rate"],
            "skipped_updates": opt_state.total_notfinite,
            "skipped_in_a_row": opt_state.notfinite_count,
        },
    )


def schedule_of(config: ConfigDict | FrozenConfigDict, updates: int) -> Schedule:
    """The Schedule of the fields `optimizer` of an experiment, for `updates` updates in all."""
    peak, warmup = float(config.learning_rate), float(config.warmup_steps)
    end = peak if config.schedule == "constant" else peak * config.end_factor
    # The first update already learns: warm-up runs from peak / (warmup + 1).
    first, rest = peak / (warmup + 1), max(updates - warmup, 1.0)
    return Schedule(config.schedule, peak, end, peak - first, peak - end, warmup, rest)


def learning_rate(schedule: Schedule, count: jax.Array) -> jax.Array:
    """The learning rate f32[] of the update that follows `count` i32[] accepted ones.

    As optax's linear_schedule, joined with its constant, linear or cosine decay.
    """
    s = schedule
    rising = s.peak - s.rise * (1 - count / jnp.maximum(s.warmup, 1.0))
    done, rest = jnp.clip(count - s.warmup, 0, s.rest), jnp.maximum(s.rest, 1.0)
    left = 0.5 * (1 + jnp.cos(jnp.pi * done / rest)) if s.kind == "cosine" else 1 - done / rest
    return jnp.where(count < s.warmup, rising, s.fall * left + s.end)


def adamw(numbers: AdamW) -> optax.GradientTransformation:
    """AdamW on gradients clipped by their global norm; non-finite ones are skipped and counted.

    The hyperparameters that the state shows are those of its newest update, skipped or not.
    """
    rate = partial(learning_rate, numbers.schedule)
    fixed = {name: getattr(numbers, name) for name in ("b1", "b2", "eps", "weight_decay")}
    inner = optax.inject_hyperparams(optax.adamw, static_args=("mask",))(
        rate, **fixed, mask=_decayed
    )
    clipped = optax.chain(optax.clip_by_global_norm(numbers.max_grad_norm), inner)
    whole = optax.apply_if_finite(clipped, max_consecutive_errors=NEVER)

    def update(gradient, state, params):
        # optax would use the numbers in the state, which may be zeros, or another config's.
        count = optax.tree.get(state, "hyperparams_states")["learning_rate"].count
        now = fixed | {"learning_rate": rate(count)}
        shown = optax.tree.get(state, "hyperparams")
        shown = {k: jnp.asarray(now.get(k, x), x.dtype) for k, x in shown.items()}
        return whole.update(gradient, optax.tree.set(state, hyperparams=shown), params)

    return optax.GradientTransformation(whole.init, update)


def _decayed(params):
    """Weight decay is for matrices; not for the scales of norms and biases."""
    exempt = lambda path: {"scale", "bias"} & {getattr(k, "key", None) for k in path}  # noqa: E731
    return jax.tree.map_with_path(lambda path, _: not exempt(path), params)
