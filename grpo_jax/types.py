"""The arrays that travel between the floors; P prompts, G group, S prompt length, T completion."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import struct


class Prompts(struct.PyTreeNode):
    """Left-padded prompts: tokens i32[P, S]; mask bool[P, S], True on real tokens."""

    tokens: jax.Array
    mask: jax.Array


class Rollouts(struct.PyTreeNode):
    """Sampled groups of completions, right-padded.

    prompts   Prompts of [P, S]
    tokens    i32[P, G, T]
    mask      bool[P, G, T]; True where the policy chose the token, the stop token included
    logp      f32[P, G, T], nats; log-prob of the token under the sampling temperature
    entropy   f32[P, G, T], nats; of the distribution that the token was drawn from
    finished  bool[P, G]; True if the completion ended with a stop token
    drafted   i32[P, G], tokens that speculative decoding drafted, or None without it
    accepted  i32[P, G], those of them that became the completion's, or None
    """

    prompts: Prompts
    tokens: jax.Array
    mask: jax.Array
    logp: jax.Array
    entropy: jax.Array
    finished: jax.Array
    drafted: jax.Array | None = None
    accepted: jax.Array | None = None


class StepRewards(struct.PyTreeNode):
    """What single steps of completions earned; K is the most that one has, or more.

    rewards  f32[P, G, K]
    ends     i32[P, G, K]; the token that a step ends with, -1 where there is no step
    """

    rewards: jax.Array
    ends: jax.Array


class Batch(struct.PyTreeNode):
    """What updates learn from; every array leads with P, so that minibatches are slices.

    prompts       Prompts of [P, S]
    tokens        i32[P, G, T]
    mask          bool[P, G, T]; True where the token is in the loss
    advantages    f32[P, G, T] or f32[P, G, 1]
    logp_rollout  f32[P, G, T], nats; the sampler's log-probs
    logp_old      f32[P, G, T] of the policy before the first update on this batch, or None when
                  every batch is used once: the learner's own log-probs, detached, serve
    logp_ref      f32[P, G, T] of the reference policy, or None when nothing needs it
    correction    f32[P, G, T], weight for the drift between sampler and learner, or None
    selection     f32[P, G, T], the algorithm's token selection, or None
    values        f32[P, G, T], the critic's before the first update on this batch, or None
    returns       f32[P, G, T], what the critic is to learn, or None
    """

    prompts: Prompts
    tokens: jax.Array
    mask: jax.Array
    advantages: jax.Array
    logp_rollout: jax.Array
    logp_old: jax.Array | None = None
    logp_ref: jax.Array | None = None
    correction: jax.Array | None = None
    selection: jax.Array | None = None
    values: jax.Array | None = None
    returns: jax.Array | None = None


class CriticState(struct.PyTreeNode):
    """A critic's parameters, as `models.critic` has them, and its optimizer's state."""

    params: Any
    opt_state: Any


class TrainState(struct.PyTreeNode):
    """All the arrays that training carries from step to step.

    step        i32[]; updates made
    params      the parameters that the optimizer moves; with adapters (LoRA), the adapters alone
    opt_state   optax state
    ref_params  the reference policy's parameters, or None when no KL term needs them or `base` is
                the reference
    rng         PRNG key of the run; every use folds its own step in
    router      experts' auxiliary-loss-free biases, which no optimizer touches, or None
    base        the parameters that stay as they are, and are not saved, or None
    critic      a CriticState, or None
    pending     with rollout.overlap, Rollouts that wait for their rewards, less their prompts
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ref_params: Any
    rng: jax.Array
    router: Any = None
    base: Any = None
    critic: CriticState | None = None
    pending: Rollouts | None = None

    @property
    def frozen(self) -> Any:
        """The policy's parameters that the optimizer does not move; may be an empty dict."""
        return merged(self.base, self.router)

    @property
    def policy(self) -> Any:
        """All parameters of the policy, as the model takes them."""
        return merged(self.base, self.router, self.params)


def merged(*trees: Any) -> Any:
    """One nested dict of several without common leaves; a tree may be None."""
    whole: dict[str, Any] = {}
    for tree in trees:
        for name, value in (tree or {}).items():
            inner = isinstance(value, Mapping)
            whole[name] = merged(whole.get(name), value) if inner else value
    return whole
