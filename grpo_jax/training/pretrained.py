"""The parameters that a run starts from: a Hugging Face directory's, or another run's."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from grpo_jax.console.progress import doing
from grpo_jax.errors import UsageError
from grpo_jax.files import at_home, fingerprint
from grpo_jax.learning.policy import split
from grpo_jax.learning.state import TrainState
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.files import tensor_files
from grpo_jax.models.lora import ADAPTERS
from grpo_jax.models.quantized import quantize_leaf
from grpo_jax.models.weights import load_weights
from grpo_jax.runs import checkpoints
from grpo_jax.sharding import shardings, unbox
from grpo_jax.training.experiment import Experiment
from grpo_jax.types import merged


def abstract_params(model: Decoder, mesh: Mesh, adapters: bool = False) -> Any:
    """The shapes and shardings of a model's parameters without adapters; or only of `adapters`."""
    tokens = jnp.zeros((1, 1, 2), jnp.int32)
    init = lambda key: model.init(key, tokens, method=Decoder.initialise)["params"]  # noqa: E731
    boxed = jax.eval_shape(init, jax.random.key(0))
    abstract = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        unbox(boxed),
        shardings(boxed, mesh),
    )
    flat = flax.traverse_util.flatten_dict(abstract)
    wanted = {path: leaf for path, leaf in flat.items() if (path[-1] in ADAPTERS) == adapters}
    return flax.traverse_util.unflatten_dict(wanted)


def pretrained(ex: Experiment) -> Any:
    """The parameters in config.model.path on the mesh, without adapters; None without a path.

    Under adapters with config.model.lora.base, kernels are quantized as they are read.

    ValueError names a tensor that is missing, too many or misshapen.
    """
    if ex.source is None:
        return None
    c = ex.model.config
    then = None if c.lora.base == "none" else partial(quantize_leaf, kind=c.lora.base)
    with doing(f"reading the weights of {ex.source}"):
        return load_weights(ex.source, c, abstract_params(ex.model, ex.mesh), then)


def base_sources(config: Any) -> dict[str, str]:
    """The fingerprint of what a resolved config's adapters are on, {config.model.path: sha256},
    which is read at each start; {} without adapters."""
    path = config.model.path
    return {path: model_fingerprint(at_home(path))} if config.model.lora.rank else {}


def model_fingerprint(directory: Path) -> str:
    """The sha256 of the names and contents of a Hugging Face directory's model and tokenizer."""
    files = [f for f in ("config.json", "tokenizer.json") if (directory / f).is_file()]
    files += sorted(set(tensor_files(directory).values()))
    with doing(f"fingerprinting {directory}", log_after_s=5.0), ThreadPoolExecutor() as pool:
        sums = pool.map(fingerprint, [directory / name for name in files])
        lines = [f"{name} {found}\n" for name, found in zip(files, sums, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def load_initial_params(ex: Experiment) -> Any:
    """The parameters to train from: of the run in config.start, else `pretrained`.

    UsageError where there is no such run, or its model is another.
    """
    if not ex.config.start:
        return pretrained(ex)
    adapted = ex.model.config.lora.rank > 0  # a run saves only its adapters
    learnt = check_and_place(
        ex, restore_run_params(ex), abstract_params(ex.model, ex.mesh, adapted)
    )
    return merged(pretrained(ex) if adapted else None, learnt)


def restore_run_params(ex: Experiment) -> Any:
    """The newest parameters of the run in config.start; UsageError where there is none."""
    folder = at_home(ex.config.start)
    if not (folder / "checkpoints").is_dir():
        raise UsageError(f"config.start: {folder} holds no run: there is no checkpoints/ in it")
    return checkpoints.restore_params(folder / "checkpoints")[0]


def check_and_place(ex: Experiment, learnt: Any, abstract: Any) -> Any:
    """`learnt`, the parameters of the run in config.start, placed as `abstract` ones are.

    UsageError where they are of another model.
    """
    wanted, found = map(flax.traverse_util.flatten_dict, (abstract, learnt))
    for path in sorted(wanted.keys() | found.keys()):
        shapes = [str(tree[path].shape) if path in tree else "none" for tree in (wanted, found)]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"config.start: the run in {ex.config.start} has another model: {'/'.join(path)} "
                f"has shape {shapes[1]}, this config's {shapes[0]}"
            )
    put = {path: jax.device_put(leaf, wanted[path].sharding) for path, leaf in found.items()}
    return flax.traverse_util.unflatten_dict(put)


def with_base(ex: Experiment, state: TrainState) -> TrainState:
    """A restored state with the parameters that checkpoints leave out: those under adapters."""
    if not ex.model.config.lora.rank:
        return state
    base = split(merged(pretrained(ex), state.policy.trained)).base
    return state.replace(policy=state.policy.replace(base=base))
