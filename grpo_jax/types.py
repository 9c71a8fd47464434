"""The arrays that travel between the floors; P prompts, G group, S prompt length, T completion."""

from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

Params: TypeAlias = dict[str, Any]  # arrays of a model, or of a part of it, in nested dicts
# One a token, or one a completion.
Advantages: TypeAlias = Float[Array, "P G T"] | Float[Array, "P G 1"]


class Prompts(struct.PyTreeNode, kw_only=True):
    """Left-padded prompts; mask is True on real tokens."""

    tokens: Int[Array, "P S"]
    mask: Bool[Array, "P S"]


class Rollouts(struct.PyTreeNode, kw_only=True):
    """Sampled groups of completions, right-padded.

    mask      True where the policy chose the token, the stop token included
    logp      nats; log-prob of the token under the sampling temperature
    entropy   nats; of the distribution that the token was drawn from
    finished  True if the completion ended with a stop token
    extras    what an engine counts besides, by name
    """

    prompts: Prompts
    tokens: Int[Array, "P G T"]
    mask: Bool[Array, "P G T"]
    logp: Float[Array, "P G T"]
    entropy: Float[Array, "P G T"]
    finished: Bool[Array, "P G"]
    extras: dict[str, Shaped[Array, "P G"]] = struct.field(default_factory=dict)


class StepRewards(struct.PyTreeNode, kw_only=True):
    """Rewards of the single steps of solutions; K is at least the number of steps of the longest.

    ends  the index of the token that a step ends with, -1 where there is no step
    """

    rewards: Float[Array, "P G K"]
    ends: Int[Array, "P G K"]


class Batch(struct.PyTreeNode, kw_only=True):
    """What updates learn from; every array leads with P, so that minibatches are slices.

    mask          True where the token is in the loss
    logp_rollout  nats; the sampler's log-probs
    logp_old      of the policy before the first update on this batch, or None when every batch is
                  used once: the learner's own log-probs, detached, serve
    logp_ref      of the reference policy, or None when nothing needs it
    correction    weight for the drift between sampler and learner, or None
    selection     the algorithm's token selection, or None
    values        the critic's before the first update on this batch, or None
    returns       what the critic is to learn, or None
    """

    prompts: Prompts
    tokens: Int[Array, "P G T"]
    mask: Bool[Array, "P G T"]
    advantages: Advantages
    logp_rollout: Float[Array, "P G T"]
    logp_old: Float[Array, "P G T"] | None = None
    logp_ref: Float[Array, "P G T"] | None = None
    correction: Float[Array, "P G T"] | None = None
    selection: Float[Array, "P G T"] | None = None
    values: Float[Array, "P G T"] | None = None
    returns: Float[Array, "P G T"] | None = None


def on_host(array: np.ndarray) -> Array:
    """The array as it is, for a struct that `sharding.put_batch` is yet to put on the devices."""
    return cast(Array, array)


def merged(*trees: Params | None) -> Params:
    """One nested dict of several without common leaves; a tree may be None."""
    whole: dict[str, Any] = {}
    for tree in trees:
        for name, value in (tree or {}).items():
            inner = isinstance(value, Mapping)
            whole[name] = merged(whole.get(name), value) if inner else value
    return whole
