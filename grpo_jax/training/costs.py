"""The memory and FLOPs of a learner, from the compiler's own analysis; nothing runs."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from grpo_jax.algorithms import needs_steps
from grpo_jax.files import Json
from grpo_jax.learning.optimizer import make_optimizer
from grpo_jax.learning.prepare import prepare
from grpo_jax.learning.state import abstract_state
from grpo_jax.learning.update import update
from grpo_jax.rollout.grade import MULTIPLE
from grpo_jax.training.experiment import build
from grpo_jax.training.rl import make_critic
from grpo_jax.types import Prompts, Rollouts, StepRewards


def learner_cost(config: FrozenConfigDict) -> dict[str, float]:
    """Bytes of parameters (critic and reference included), of optimizers and at the peak, and FLOPs
    of a step's preparation and updates, of a resolved config. Sampling is not included."""
    ex = build(config)
    optimizer, critic = (
        make_optimizer(config.optimizer, 1),
        make_critic(ex.algorithm, config.optimizer, 1),
    )
    reference = ex.algorithm.beta > 0
    state = abstract_state(ex.model, optimizer, ex.mesh, reference=reference, critic=critic)
    P, G, T = config.rollout.prompts, config.rollout.group, config.rollout.max_tokens
    S, shape = config.prompt_length, _shape
    prompts = Prompts(tokens=shape((P, S), jnp.int32), mask=shape((P, S), bool))
    numbers, flags = shape((P, G, T), jnp.float32), shape((P, G, T), bool)
    tokens, finished = shape((P, G, T), jnp.int32), shape((P, G), bool)
    rollouts = Rollouts(
        prompts=prompts, tokens=tokens, mask=flags, logp=numbers, entropy=numbers, finished=finished
    )
    steps = None
    if needs_steps(ex.algorithm):
        steps = StepRewards(
            rewards=shape((P, G, MULTIPLE), jnp.float32), ends=shape((P, G, MULTIPLE), jnp.int32)
        )
    given = state, rollouts, shape((P, G), jnp.float32), steps
    fixed = {"model": ex.model, "algorithm": ex.algorithm}
    before = partial(prepare, temperature=config.rollout.temperature, **fixed)
    prepared = jax.jit(before).lower(*given)
    parts = ex.algorithm.minibatches
    cut = lambda x: shape((x.shape[0] // parts, *x.shape[1:]), x.dtype)  # noqa: E731
    batch = jax.tree.map(cut, jax.eval_shape(before, *given))
    options = {"accumulation": config.optimizer.accumulation, "critic": critic}
    updated = update.lower(state, batch, optimizer=optimizer, **fixed, **options)
    held, moments = [state.policy.trained, state.reference, state.policy.base], [state.opt_state]
    if state.critic is not None:
        held, moments = [*held, state.critic.params], [*moments, state.critic.opt_state]
    flop = _flop(prepared) + parts * ex.algorithm.inner_epochs * _flop(updated)
    peak = max(analysis(lowered.compile())["total"] for lowered in (prepared, updated))
    return {
        "parameters": tree_bytes(held),
        "optimizer": tree_bytes(moments),
        "peak": peak,
        "flop": flop,
    }


def _shape(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _flop(lowered: Any) -> float:
    return float(lowered.cost_analysis()["flops"])


def analysis(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of arguments, and of all that is alive besides; donated arguments count once."""
    m = compiled.memory_analysis()
    assert m is not None
    beside = m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return {
        "arguments": m.argument_size_in_bytes,
        "beside": beside,
        "total": m.argument_size_in_bytes + beside,
    }


def tree_bytes(tree: chex.ArrayTree) -> int:
    """Bytes of a tree's arrays, or of their shapes."""
    bits = jax.dtypes.itemsize_bits
    return sum(x.size * bits(x.dtype) // 8 for x in jax.tree.leaves(tree) if hasattr(x, "size"))


def size_table(result: Json) -> list[str]:
    """Lines of a table of names and values with their units: sizes, all floats, are in GiB."""
    units = {"count": " parameters"}
    shown = {
        name: f"{value:,.3f} GiB" if isinstance(value, float) else f"{value}{units.get(name, '')}"
        for name, value in result.items()
    }
    return [f"{name:20} {value}" for name, value in shown.items()]
