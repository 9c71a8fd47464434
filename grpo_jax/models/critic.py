"""The critic of PPO (1707.06347): the expected reward, before each token.

Its parameters are {"value": f32[C]}, a head on the policy's own hidden states, or those and
{"body": ...}, a separate network.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.forward import forward_group
from grpo_jax.types import Params, Prompts, merged

NOT_THE_BODYS = ("head", "mtp")  # what predicts tokens


def init_critic(kind: str, config: ModelConfig, trained: Params) -> Params:
    """A critic that expects 0; `trained` are the parameters that the policy learns.

    kind  network: a copy of the policy as it starts, so twice the memory and compute; head: a
          head on the policy, which then learns both
    """
    value = jnp.zeros(config.hidden, jnp.float32)
    if kind == "head":
        return {"value": value}
    body = {k: v for k, v in trained.items() if k not in NOT_THE_BODYS}
    return {"value": value, "body": jax.tree.map(jnp.copy, body)}


def critic_values(
    model: Decoder,
    critic: Params,
    frozen: Params | None,
    prompts: Prompts,
    tokens: Int[Array, "P G T"],
    hidden: Float[Array, "P G T C"] | None,
) -> Float[Array, "P G T"]:
    """V before each token of completions, in units of reward.

    frozen  the policy's parameters that nothing trains (under adapters, of experts), or None
    hidden  the policy's states that predict the tokens; only a head needs them
    """
    if "body" in critic:
        body = Decoder(dataclasses.replace(model.config, tied=True, mtp=0))
        params = merged(frozen, critic["body"])
        hidden = forward_group(body, params, prompts, tokens).hidden
    assert hidden is not None, "a head reads the policy's states"
    return hidden.astype(jnp.float32) @ critic["value"]
