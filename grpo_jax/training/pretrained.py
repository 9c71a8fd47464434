"""The parameters that a run starts from: a Hugging Face directory's, or another run's."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

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
from grpo_jax.types import Params, merged


class Origin(NamedTuple):
    """What parameters are read into, and from where.

    source  a Hugging Face directory; None = none
    start   the folder of the run in config.start; None = none
    """

    model: Decoder
    mesh: Mesh
    source: Path | None
    start: Path | None


def abstract_params(model: Decoder, mesh: Mesh, adapters: bool = False) -> Params:
    """The shapes and shardings of a model's parameters without adapters, or of `adapters` only."""
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


def pretrained(origin: Origin) -> Params | None:
    """The parameters in the directory, without adapters, on the mesh; None without a directory.

    Under adapters with config.model.lora.base, kernels are quantized as they are read.

    ValueError names a tensor that is missing, too many or misshapen.
    """
    if origin.source is None:
        return None
    c = origin.model.config
    then = None if c.lora.base == "none" else partial(quantize_leaf, kind=c.lora.base)
    with doing(f"reading the weights of {origin.source}"):
        return load_weights(origin.source, c, abstract_params(origin.model, origin.mesh), then)


def base_sources(config: FrozenConfigDict) -> dict[str, str]:
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


def load_initial_params(origin: Origin) -> Params | None:
    """The parameters to train from: of the run in config.start, else `pretrained`.

    UsageError where there is no such run, or its model is another.
    """
    if origin.start is None:
        return pretrained(origin)
    adapted = origin.model.config.lora.rank > 0  # a run saves its adapters only
    abstract = abstract_params(origin.model, origin.mesh, adapted)
    learnt = check_and_place(origin.start, restore_run_params(origin.start), abstract)
    return merged(pretrained(origin) if adapted else None, learnt)


def restore_run_params(folder: Path) -> Params:
    """The newest parameters of the run in config.start; UsageError where there is none."""
    if not (folder / "checkpoints").is_dir():
        raise UsageError(f"config.start: {folder} holds no run: there is no checkpoints/ in it")
    return checkpoints.restore_params(folder / "checkpoints")[0]


def check_and_place(folder: Path, learnt: Params, abstract: Params) -> Params:
    """`learnt`, the parameters of the run in a folder, placed as `abstract` ones are.

    UsageError where they are of another model.
    """
    wanted, found = map(flax.traverse_util.flatten_dict, (abstract, learnt))
    for path in sorted(wanted.keys() | found.keys()):
        shapes = [str(tree[path].shape) if path in tree else "none" for tree in (wanted, found)]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"config.start: the run in {folder} has another model: {'/'.join(path)} "
                f"has shape {shapes[1]}, this config's {shapes[0]}"
            )
    put = {path: jax.device_put(leaf, wanted[path].sharding) for path, leaf in found.items()}
    return flax.traverse_util.unflatten_dict(put)


def with_base(origin: Origin, state: TrainState) -> TrainState:
    """A restored state with the parameters that checkpoints leave out: those under adapters."""
    if not origin.model.config.lora.rank:
        return state
    base = split(merged(pretrained(origin), state.policy.trained)).base
    return state.replace(policy=state.policy.replace(base=base))
