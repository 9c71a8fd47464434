"""Parameters that a run does not learn from nothing: those of a Hugging Face directory."""

from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from grpo_jax.experiment import Experiment
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.lora import ADAPTERS
from grpo_jax.models.quantized import quantize_leaf
from grpo_jax.models.weights import load_weights
from grpo_jax.sharding import shardings, unbox
from grpo_jax.train_state import split_params
from grpo_jax.types import TrainState, merged


def abstract_params(model: Decoder, mesh: Mesh) -> Any:
    """The shapes and shardings of a model's parameters, adapters apart."""
    tokens = jnp.zeros((1, 1, 2), jnp.int32)
    init = lambda key: model.init(key, tokens, method=Decoder.initialise)["params"]  # noqa: E731
    boxed = jax.eval_shape(init, jax.random.key(0))
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        unbox(boxed),
        shardings(boxed, mesh),
    )
    flat = flax.traverse_util.flatten_dict(abstract)
    wanted = {path: leaf for path, leaf in flat.items() if path[-1] not in ADAPTERS}
    return flax.traverse_util.unflatten_dict(wanted)


def pretrained(ex: Experiment) -> Any:
    """The parameters in config.model.path on the mesh, adapters apart; None without a path.

    Under adapters with config.model.lora.base, kernels are quantized as they are read.

    ValueError names a tensor that is missing, too many or misshapen.
    """
    if ex.source is None:
        return None
    c = ex.model.config
    then = None if c.lora.base == "none" else partial(quantize_leaf, kind=c.lora.base)
    return load_weights(ex.source, c, abstract_params(ex.model, ex.mesh), then)


def with_base(ex: Experiment, state: TrainState) -> TrainState:
    """A restored state with the parameters that checkpoints leave out: those under adapters."""
    if not ex.model.config.lora.rank:
        return state
    base = split_params(merged(pretrained(ex), state.params))[2]
    return state.replace(base=base)
