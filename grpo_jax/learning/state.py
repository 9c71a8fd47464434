"""The state of training: drawn, made from parameters, or as shapes to restore a checkpoint into."""

from collections.abc import Callable
from functools import lru_cache, partial

import flax
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from grpo_jax.learning.optimizer import Optimizer
from grpo_jax.learning.policy import Policy, split
from grpo_jax.models.critic import init_critic
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.quantized import is_quantized
from grpo_jax.sharding import shardings, unbox
from grpo_jax.types import Params


class CriticState(struct.PyTreeNode, kw_only=True):
    """A critic's parameters, as `models.critic` has them, and its optimizer's state."""

    params: Params
    opt_state: optax.OptState


class Critic(struct.PyTreeNode, kw_only=True):
    """What PPO trains beside the policy: a kind of `models.critic`, and its optimizer."""

    kind: str = struct.field(pytree_node=False)
    optimizer: Optimizer


class TrainState(struct.PyTreeNode, kw_only=True):
    """All the arrays that training carries from step to step.

    step       updates made
    opt_state  optax state
    reference  the reference policy's parameters, or None when no KL term needs them or the
               policy's base is the reference
    rng        PRNG key of the run; every use folds its own step in
    critic     None without one
    """

    step: Int[Array, ""]
    policy: Policy
    opt_state: optax.OptState
    reference: Params | None = None
    rng: Key[Array, ""]
    critic: CriticState | None = None

    @property
    def saved(self) -> "TrainState":
        """What a checkpoint keeps: all except the policy's base."""
        return self.replace(policy=self.policy.saved)


def init_state(
    model: Decoder,
    optimizer: Optimizer,
    rng: jax.Array,
    mesh: Mesh,
    *,
    reference: bool,
    params: Params | None = None,
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
        return _first_state(init, mesh)(rng)
    like = unbox(jax.eval_shape(init, rng)).policy.full
    flat, given = (flax.traverse_util.flatten_dict(tree) for tree in (like, params))
    where = flax.traverse_util.flatten_dict(place.policy.full)
    put = {
        k: x if is_quantized(x) else jax.device_put(x.astype(flat[k].dtype), where[k])
        for k, x in given.items()
    }
    lacking = {k: sharding for k, sharding in where.items() if k not in given}

    def draw(key):
        drawn = flax.traverse_util.flatten_dict(unbox(init(key)).policy.full)
        return {k: drawn[k] for k in lacking}

    put |= jax.jit(draw, out_shardings=lacking)(rng) if lacking else {}
    policy = split(flax.traverse_util.unflatten_dict(put))
    first = jax.jit(optimizer.init, out_shardings=place.opt_state)
    begin = jax.jit(partial(_critic_state, model, critic), out_shardings=place.critic)
    return TrainState(
        step=jnp.int32(0),
        policy=policy,
        opt_state=first(policy.trained),
        reference=_reference(policy) if reference else None,
        rng=rng,
        critic=begin(policy.trained),
    )


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
    """key -> a boxed TrainState; one function, which JAX traces once, for all numbers of AdamW."""
    plain = jax.tree.map(lambda _: 0.0, (optimizer, critic))
    return _cached_initialiser(model, plain[0], reference, plain[1])


@lru_cache(maxsize=16)
def _first_state(init: Callable, mesh: Mesh) -> Callable:
    """key -> what `init` gives, on the mesh; compiled once."""
    place = shardings(jax.eval_shape(init, jax.random.key(0)), mesh)

    def first_state(key):
        return unbox(init(key))

    return jax.jit(first_state, out_shardings=place)


@lru_cache(maxsize=16)
def _cached_initialiser(model, optimizer, reference, critic):
    def init(rng):
        tokens = jnp.zeros((1, 1, 2), jnp.int32)
        policy = split(model.init(rng, tokens, method=Decoder.initialise)["params"])
        lora = model.config.lora
        if lora.rank and policy.base is None:
            raise ValueError(f"model.lora.targets={lora.targets!r} matches no linear layer")
        return TrainState(
            step=jnp.int32(0),
            policy=policy,
            opt_state=optimizer.init(policy.trained),
            reference=_reference(policy) if reference else None,
            rng=rng,
            critic=_critic_state(model, critic, policy.trained),
        )

    return init


def _reference(policy: Policy) -> Params | None:
    """A copy of the policy as it starts; None where its base is the reference."""
    return jax.tree.map(jnp.copy, policy.full) if policy.base is None else None


def _critic_state(model, critic, trained):
    if critic is None:
        return None
    params = init_critic(critic.kind, model.config, trained)
    return CriticState(params=params, opt_state=critic.optimizer.init(params))
