"""The critic of PPO (1707.06347): the reward still to be expected, before each token.

Its parameters are {"value": f32[C]}, a head on the policy's own hidden states, or those and
{"body": ...}, a network of its own.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.score import score
from grpo_jax.types import Prompts, merged

NOT_THE_BODYS = ("head", "mtp")  # what predicts tokens


def init_critic(kind: str, config: ModelConfig, trained: Any) -> Any:
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
    model: Decoder, critic: Any, frozen: Any, prompts: Prompts, tokens: jax.Array, hidden: Any
) -> jax.Array:
    """V before each token of completions i32[P, G, T], in units of reward, f32[P, G, T].

    frozen  the policy's parameters that nothing trains (under adapters, of experts), or None
    hidden  [P, G, T, C], the policy's states that predict the tokens; a head's alone
    """
    if "body" in critic:
        body = Decoder(dataclasses.replace(model.config, tied=True, mtp=0))
        params = merged(frozen, critic["body"])
        hidden = score(body, params, prompts, tokens).hidden
    return hidden.astype(jnp.float32) @ critic["value"]
