"""A TrainState from nothing, from parameters, or as shapes to restore a checkpoint into."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from grpo_jax.models.critic import init_critic
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.lora import ADAPTERS
from grpo_jax.models.quantized import is_quantized
from grpo_jax.optimizer import Optimizer
from grpo_jax.sharding import shardings, unbox
from grpo_jax.types import CriticState, TrainState

BIAS = "router_bias"


class Critic(struct.PyTreeNode):
    """What PPO trains beside the policy: a kind of `models.critic`, and its optimizer."""

    kind: str = struct.field(pytree_node=False)
    optimizer: Optimizer


def split_params(params: Any) -> tuple[Any, Any, Any]:
    """A policy's parameters as TrainState keeps them: (params, router, base); see there."""
    flat = flax.traverse_util.flatten_dict(params)
    adapters = any(path[-1] in ADAPTERS for path in flat)

    def part(chosen: Callable[[str], bool]) -> Any:
        leaves = {path: x for path, x in flat.items() if chosen(path[-1])}
        return flax.traverse_util.unflatten_dict(leaves) if leaves else None

    if adapters:  # what routes the frozen experts is frozen too
        return part(ADAPTERS.__contains__), None, part(lambda name: name not in ADAPTERS)
    return part(lambda name: name != BIAS), part(lambda name: name == BIAS), None


def init_state(
    model: Decoder,
    optimizer: Optimizer,
    rng: jax.Array,
    mesh: Mesh,
    *,
    reference: bool,
    params: Any = None,
    critic: Critic | None = None,
) -> TrainState:
    """A TrainState on the mesh, sharded as the parameters' logical axes say.

    params     parameters to start from, which the state takes over (an update donates them); what
               they lack (adapters), or all, is drawn from rng
    reference  keep a copy of the parameters as the reference policy, unless the base serves
    critic     the critic to train beside the policy, which starts as a copy of it
    """
    init = _initialiser(model, optimizer, reference, critic)
    place = shardings(jax.eval_shape(init, rng), mesh)
    if params is None:

        def first_state(key):
            return unbox(init(key))

        return jax.jit(first_state, out_shardings=place)(rng)
    like = unbox(jax.eval_shape(init, rng)).policy
    flat, given = (flax.traverse_util.flatten_dict(tree) for tree in (like, params))
    where = flax.traverse_util.flatten_dict(place.policy)
    put = {
        k: x if is_quantized(x) else jax.device_put(x.astype(flat[k].dtype), where[k])
        for k, x in given.items()
    }
    lacking = {k: sharding for k, sharding in where.items() if k not in given}

    def draw(key):
        drawn = flax.traverse_util.flatten_dict(unbox(init(key)).policy)
        return {k: drawn[k] for k in lacking}

    put |= jax.jit(draw, out_shardings=lacking)(rng) if lacking else {}
    policy = flax.traverse_util.unflatten_dict(put)
    trained, router, base = split_params(policy)
    opt_state = jax.jit(optimizer.init, out_shardings=place.opt_state)(trained)
    ref = jax.tree.map(jnp.copy, policy) if reference and base is None else None
    begin = partial(_critic_state, model, critic)
    begun = jax.jit(begin, out_shardings=place.critic)(trained)
    return TrainState(jnp.int32(0), trained, opt_state, ref, rng, router, base, begun)


def abstract_state(
    model: Decoder,
    optimizer: Optimizer,
    mesh: Mesh,
    *,
    reference: bool,
    critic: Critic | None = None,
) -> TrainState:
    """The shapes and shardings of `init_state`, to restore a checkpoint into."""
    init = _initialiser(model, optimizer, reference, critic)
    boxed = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        unbox(boxed),
        shardings(boxed, mesh),
    )


def _initialiser(model, optimizer, reference, critic):
    def init(rng):
        tokens = jnp.zeros((1, 1, 2), jnp.int32)
        policy = model.init(rng, tokens, method=Decoder.initialise)["params"]
        trained, router, base = split_params(policy)
        lora = model.config.lora
        if lora.rank and base is None:
            raise ValueError(f"model.lora.targets={lora.targets!r} matches no linear layer")
        ref = jax.tree.map(jnp.copy, policy) if reference and base is None else None
        opt_state, begun = optimizer.init(trained), _critic_state(model, critic, trained)
        return TrainState(jnp.int32(0), trained, opt_state, ref, rng, router, base, begun)

    return init


def _critic_state(model, critic, trained):
    if critic is None:
        return None
    params = init_critic(critic.kind, model.config, trained)
    return CriticState(params, critic.optimizer.init(params))
