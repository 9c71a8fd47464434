"""A Hugging Face directory's weights, read straight to their place, and written back."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array
from numpy.typing import DTypeLike
from safetensors import safe_open
from safetensors.numpy import save_file

from grpo_jax.files import METADATA, TEXT_FILES, Json, read_object, replacing
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.config_json import as_scoring, family_in, family_named, write_config
from grpo_jax.models.families.base import EMBEDDING, HEAD, Family
from grpo_jax.models.files import INDEX, SINGLE, opened, tensor_files
from grpo_jax.models.names import Part, copies, parts
from grpo_jax.models.quantized import Quantized
from grpo_jax.tokenizers import TextTokenizer, load_tokenizer, same_tokenizer, save_tokenizer
from grpo_jax.types import Params

SHARD_BYTES = 5 * 10**9
POSITIONS = 32_768  # what a model of ours says it can read; nothing limits it
FP8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
FP8_BLOCK = 128  # DeepSeek-V3 scales its FP8 weights by blocks of 128 x 128
SCALE = "_scale_inv"
IGNORED = ("rotary_emb.inv_freq",)  # buffers that old checkpoints hold


def load_weights(
    directory: Path,
    c: ModelConfig,
    abstract: Params,
    then: Callable[[tuple[str, ...], Array], Array | Quantized] | None = None,
) -> Params:
    """The parameters in a Hugging Face directory, each put where `abstract` says, in its dtype.

    abstract  nested dict of ShapeDtypeStructs with shardings, without adapters
    then      (path, parameter) -> what is kept of it

    Tensors are read one at a time, and of each the part that a device holds. FP8 weights with
    block scales are multiplied out. ValueError names a tensor that is missing, too many or of
    another shape, and a file that is cut off.
    """
    files = tensor_files(directory)
    leaves = flax.traverse_util.flatten_dict(abstract)
    family = family_in(directory, c)
    wanted = {path: parts(family, c, path) for path in leaves}
    embedding, head = family.whole[EMBEDDING], family.whole[HEAD]
    if c.tied and embedding not in files and head in files:  # one matrix, under its other name
        wanted["embed", "embedding"] = [Part(head, (), False)]
    names = {part.name for ps in wanted.values() for part in ps}
    _check_names(directory, family, c, names, set(files))
    with _Reader(directory, files) as reader:
        params = {}
        for path, leaf in leaves.items():
            loaded = _load(reader, wanted[path], leaf)
            params[path] = then(path, loaded) if then else loaded
    return flax.traverse_util.unflatten_dict(params)


def _check_names(
    directory: Path, family: Family, c: ModelConfig, wanted: set[str], found: set[str]
) -> None:
    missing = sorted(wanted - found)
    if missing:
        raise ValueError(f"{directory}: no tensor {missing[0]}, one of {len(missing)} missing")
    optional = set(copies(family, c)) | ({family.whole[HEAD]} if c.tied else set())
    at = family.prefix(c.layers)
    if not c.mtp and {at + name for name in family.draft.values()} & found:
        # The model is read without its prediction layer.
        optional |= {name for name in found if name.startswith(at)}
    scales = {name for name in found if name.removesuffix(SCALE) in wanted}
    extra = sorted(n for n in found - wanted - optional - scales if not n.endswith(IGNORED))
    if extra:
        raise ValueError(
            f"{directory}: tensor {extra[0]}, one of {len(extra)} too many for this config.json"
        )


class _Reader:
    """The open files of a checkpoint."""

    def __init__(self, directory: Path, files: dict[str, str]):
        self.directory, self.files = directory, files
        self.open: dict[str, safe_open] = {}
        self.names: dict[str, set[str]] = {}

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.open.values():
            file.__exit__(None, None, None)

    def file(self, name: str) -> safe_open:
        shard = self.files[name]
        if shard not in self.open:
            self.open[shard] = opened(self.directory / shard)
            self.names[shard] = set(self.open[shard].keys())
        if name not in self.names[shard]:
            raise ValueError(
                f"{self.directory / shard}: no tensor {name}, which {INDEX} places here"
            )
        return self.open[shard]

    def check(self, name: str, expected: tuple[int, ...]) -> None:
        found = tuple(self.file(name).get_slice(name).get_shape())
        if found != expected:
            raise ValueError(
                f"{self.directory / self.files[name]}: tensor {name}: "
                f"expected {list(expected)}, found {list(found)}"
            )

    def read(self, name: str, index: tuple[slice, ...], dtype: DTypeLike) -> np.ndarray:
        """The part of a tensor at `index`, as dtype."""
        view = self.file(name).get_slice(name)
        if view.get_dtype() in FP8:
            return self._read_fp8(name, view, index).astype(dtype)
        return (
            view[index].astype(dtype) if index else self.file(name).get_tensor(name).astype(dtype)
        )

    def _read_fp8(self, name: str, view: Any, index: tuple[slice, ...]) -> np.ndarray:
        # safetensors' NumPy side does not know FP8: its bytes are read in place.
        path, shape = self.directory / self.files[name], tuple(view.get_shape())
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            start = json.loads(file.read(size))[name]["data_offsets"][0] + 8 + size
        kind: Any = FP8[view.get_dtype()]
        raw = np.memmap(path, np.uint8, "r", start, shape).view(kind)
        if name + SCALE not in self.files:
            return raw[index].astype(np.float32)
        scales = self.file(name + SCALE).get_tensor(name + SCALE).astype(np.float32)
        blocks = tuple(math.ceil(n / FP8_BLOCK) for n in shape)
        self.check(name + SCALE, blocks)
        rows, columns = (np.arange(n)[s] for n, s in zip(shape, index, strict=True))
        return raw[index].astype(np.float32) * scales[rows // FP8_BLOCK][:, columns // FP8_BLOCK]


def _load(reader: _Reader, ps: list[Part], leaf: jax.ShapeDtypeStruct) -> Array:
    lead = len(ps[0].at)
    for part in ps:
        shape = leaf.shape[lead:]
        reader.check(part.name, shape[::-1] if part.transposed else shape)
    if not lead:
        read = lambda index: reader.read(ps[0].name, index, leaf.dtype)  # noqa: E731
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, read)
    # Tensors are put into their stack one by one, so that the host never holds a whole stack.
    whole = jax.jit(partial(jnp.zeros, leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()
    for part in ps:
        every = tuple(slice(None) for _ in leaf.shape[lead:])
        tensor = reader.read(part.name, every, leaf.dtype)
        whole = _put(whole, tensor.T if part.transposed else tensor, np.array(part.at))
    return whole


@partial(jax.jit, donate_argnums=0)
def _put(whole: Array, part: Array, index: Array) -> Array:
    part = part.reshape((1,) * len(index) + part.shape)
    start = [*index, *[0] * (whole.ndim - len(index))]
    return jax.lax.dynamic_update_slice(whole, part, start)


def tensors(
    family: Family, c: ModelConfig, params: Params
) -> Iterator[tuple[str, partial[np.ndarray]]]:
    """(name, a function that fetches it to the host) for every tensor of a checkpoint."""
    made = {}
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        for part in parts(family, c, path):
            made[part.name] = partial(_fetch, leaf, part)
    yield from made.items()
    yield from ((name, made[original]) for name, original in copies(family, c).items())


def _fetch(leaf: Array, part: Part) -> np.ndarray:
    tensor = np.asarray(leaf[part.at] if part.at else leaf)
    return np.ascontiguousarray(tensor.T if part.transposed else tensor)


def save_model(
    out: Path,
    c: ModelConfig,
    params: Params,
    source: Path | None = None,
    tokenizer: TextTokenizer | None = None,
    shard: int = SHARD_BYTES,
) -> None:
    """Write a Hugging Face directory: config.json, safetensors in shards, and the tokenizer.

    params     without adapters; a reward model's with "score" for a head
    source     the Hugging Face directory that the model came from: what config.json says besides
               the architecture, and the tokenizer's files, are taken from there
    tokenizer  to write, where there is no source or its files make another
    shard      bytes a file

    The directory appears whole or not at all. It replaces an export that stood there, and nothing
    else: ValueError says what stands there.
    """
    old = read_object(source / "config.json") if source else {}
    hf = _kept(old) | write_config(c, old.get("model_type", ""))
    family = family_named(hf)
    if "score" in params:
        pads = tokenizer is not None and tokenizer.pad not in tokenizer.stop
        hf = as_scoring(hf, tokenizer.pad if tokenizer and pads else None)
    with replacing(out, source) as made:
        if source is None:
            hf |= {"max_position_embeddings": POSITIONS}
        if tokenizer is not None and not (source and _makes(source, tokenizer)):
            save_tokenizer(tokenizer, made)
        elif source is not None:
            for file in TEXT_FILES:
                if (source / file).is_file():
                    shutil.copyfile(source / file, made / file)
        dtype = str(jax.tree.leaves(params)[0].dtype)
        hf |= {"dtype": dtype, "torch_dtype": dtype}
        (made / "config.json").write_text(json.dumps(hf, indent=2) + "\n")
        _save_tensors(made, family, c, params, shard)


def _makes(source: Path, tokenizer: TextTokenizer) -> bool:
    """Whether the tokenizer is the one in a model's directory, as that is now."""
    try:
        return same_tokenizer(load_tokenizer(source), tokenizer)
    except (OSError, ValueError):  # none that we can read: the tokenizer is from elsewhere
        return False


def _kept(hf: Json) -> Json:
    """The fields of a config.json that say nothing of how its weights are stored."""
    gone = ("quantization_config", "rope_scaling", "rope_theta", "rope_local_base_freq")
    return {k: v for k, v in hf.items() if k not in gone}


def _save_tensors(folder: Path, family: Family, c: ModelConfig, params: Params, limit: int) -> None:
    groups: list[list[tuple[str, partial[np.ndarray]]]] = [[]]
    size = total = 0
    for name, fetch in tensors(family, c, params):
        leaf, part = fetch.args
        count = leaf.nbytes // math.prod(leaf.shape[: len(part.at)])
        if groups[-1] and size + count > limit:
            groups.append([])
            size = 0
        groups[-1].append((name, fetch))
        size, total = size + count, total + count
    where: dict[str, str] = {}
    for i, group in enumerate(groups, start=1):
        file = f"model-{i:05}-of-{len(groups):05}.safetensors" if len(groups) > 1 else SINGLE
        fetched = {name: fetch() for name, fetch in group}
        save_file(fetched, folder / file, metadata=METADATA)
        where |= dict.fromkeys(fetched, file)
    if len(groups) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
