"""Batches cut into minibatches, one update each, and minibatches cut into micro-batches.

P prompts, G group, T completion length; N micro-batches.
"""

from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from grpo_jax.algorithms import Algorithm
from grpo_jax.types import Batch

Tree = TypeVar("Tree")
Aux = TypeVar("Aux")


def minibatches(batch: Batch, algorithm: Algorithm, seed: tuple[int, ...]) -> Iterator[Batch]:
    """Every minibatch of every inner epoch; prompts are dealt anew each epoch when cut.

    seed  what the dealing depends on, such as (config.seed, step)
    """
    P, n = batch.tokens.shape[0], algorithm.minibatches
    for epoch in range(algorithm.inner_epochs):
        if n == 1:
            yield batch
            continue
        order = np.random.default_rng((*seed, epoch)).permutation(P)
        for chosen in np.split(order, n):
            yield jax.tree.map(lambda x, chosen=chosen: x[chosen], batch)


class Summed(NamedTuple, Generic[Tree, Aux]):
    """A gradient, shaped like the parameters, and what else the loss returns."""

    gradient: Tree
    aux: Aux


def micro_batched(
    loss: Callable[..., tuple[Float[Array, ""], Aux]],
    params: Tree,
    parts: tuple[chex.ArrayTree, ...],
    accumulation: int,
) -> Summed[Tree, Aux]:
    """The gradient of `loss` and what else it returns, summed over micro-batches of `parts`.

    parts  arrays [P, ...], in a tuple that begins with one whose tokens say P
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if accumulation == 1:
        (_, aux), gradient = value_and_grad(params, *parts)
        return Summed(gradient, aux)

    def micro(total, micro_batch):
        (_, aux), gradient = value_and_grad(params, *micro_batch)
        return jax.tree.map(jnp.add, total, (gradient, aux)), None

    parts = _split(parts, accumulation)
    first = jax.tree.map(lambda x: x[0], parts)
    shape = jax.eval_shape(value_and_grad, params, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (shape[1], shape[0][1]))
    return Summed(*jax.lax.scan(micro, zeros, parts)[0])


def _split(tree: Any, n: int) -> Any:
    """Arrays [P, G, ...] -> [n, ...]: whole groups if n divides P, else parts of groups.

    Splitting a group forwards its prompt once a micro-batch. ValueError if neither divides.
    """
    P, G = tree[0].tokens.shape[:2]
    if P % n == 0:
        return jax.tree.map(lambda x: x.reshape(n, P // n, *x.shape[1:]), tree)
    if n % P or G % (n // P):
        raise ValueError(
            f"optimizer.accumulation={n} must divide the minibatch's {P} prompts, or be a "
            f"multiple of them that divides {P} x {G} completions"
        )
    parts = n // P

    def grouped(x):  # [P, G, ...] -> [P * parts, 1, G / parts, ...]
        return x.reshape(P * parts, 1, G // parts, *x.shape[2:])

    def repeated(x):  # [P, S] -> [P * parts, 1, S]
        return jnp.repeat(x, parts, axis=0)[:, None]

    batch, *rest = tree
    prompts = jax.tree.map(repeated, batch.prompts)
    others = jax.tree.map(grouped, batch.replace(prompts=None))
    return (others.replace(prompts=prompts), *jax.tree.map(grouped, rest))
