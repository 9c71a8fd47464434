"""FLOPs of a decoder's passes, counted from its sizes and the lengths of the texts. No JAX.

2 per parameter and token: prompts, each once a group, and completions through the layers,
completions through the head. An attention logit and its use cost 4 head_dim a head for each pair of
query and visible key: s^2 / 2 for a prompt of s tokens, t (s + t / 2) for a completion of t tokens.
What is computed for padding, and again in the backward pass, does not count.
"""

from typing import TypeAlias

import numpy as np
from jaxtyping import Int

from grpo_jax.models.config import ModelConfig

Lengths: TypeAlias = tuple[Int[np.ndarray, " P"], Int[np.ndarray, "P G"]]  # prompts, completions


def is_counted(config: ModelConfig) -> bool:
    """Whether the counts hold: for plain attention and feed-forward layers, all trained."""
    special = (config.latent.kv_rank, config.experts.count, config.lora.rank, config.mtp)
    return not any(special) and not any(config.windows)


def matmul_parameters(config: ModelConfig) -> tuple[int, int]:
    """Parameters of the layers' matrices, and of the head; the embedding multiplies nothing."""
    c = config
    attention = 2 * c.hidden * c.head_dim * (c.heads + c.kv_heads)
    return c.layers * (attention + 3 * c.hidden * c.ff), c.hidden * c.vocab_size


def forward_flop(config: ModelConfig, lengths: Lengths) -> float:
    """FLOPs of one forward pass over P groups."""
    prompts, completions = lengths
    layers, head = matmul_parameters(config)
    tokens = completions.sum()
    pairs = (prompts**2).sum() / 2 + (completions * (prompts[:, None] + completions / 2)).sum()
    through = 2 * layers * (prompts.sum() + tokens) + 2 * head * tokens
    return float(through + _per_pair(config) * pairs)


def generation_flop(config: ModelConfig, lengths: Lengths) -> float:
    """FLOPs of sampling: each token is forwarded once, except a completion's last."""
    prompts, completions = lengths
    layers, _ = matmul_parameters(config)
    last = prompts[:, None] + completions - 0.5  # the keys that it would have seen
    saved = (2 * layers + _per_pair(config) * last).sum()
    return forward_flop(config, lengths) - float(saved)


def update_flop(config: ModelConfig, lengths: Lengths, epochs: int = 1, before: int = 0) -> float:
    """FLOPs of a batch's updates: in each epoch forward and twice as much backward.

    before  forward passes that come first: the reference's, the old policy's
    """
    return (3 * epochs + before) * forward_flop(config, lengths)


def _per_pair(config: ModelConfig) -> int:
    return 4 * config.layers * config.heads * config.head_dim
