"""The tensors of a Hugging Face checkpoint that make up each parameter. No JAX."""

import itertools
from typing import NamedTuple

from grpo_jax.models.config import ModelConfig
from grpo_jax.models.families.base import HEAD, Family

Path = tuple[str, ...]


class Part(NamedTuple):
    """A tensor `name` of the checkpoint is the parameter `at` this index of its leading axes."""

    name: str
    at: tuple[int, ...]
    transposed: bool


def parts(family: Family, c: ModelConfig, path: Path) -> list[Part]:
    """The tensors that make up the parameter at `path`; KeyError where there are none."""
    first, rest = path[0], "/".join(path[1:])
    if "/".join(path) in family.whole:
        return [Part(family.whole["/".join(path)], (), False)]
    if first == "mtp":
        at = family.prefix(c.layers)
        if path[1] == "layer":
            return _layer(family, c, "/".join(path[2:]), at, ())
        return [Part(at + family.draft[rest], (), False)]
    if first.startswith("layer_"):
        return _layer(family, c, rest, family.prefix(int(first.removeprefix("layer_"))), ())
    segment = next(s for s in c.segments() if s.name == first)
    layers = range(segment.start, segment.stop)
    each = (_layer(family, c, rest, family.prefix(i), (i - segment.start,)) for i in layers)
    return list(itertools.chain.from_iterable(each))


def _layer(
    family: Family, c: ModelConfig, name: str, at: str, index: tuple[int, ...]
) -> list[Part]:
    theirs = at + family.layer[name]
    if "{e}" not in theirs:
        return [Part(theirs, index, False)]
    return [Part(theirs.format(e=e), (*index, e), True) for e in range(c.experts.count)]


def copies(family: Family, c: ModelConfig) -> dict[str, str]:
    """Tensors of a checkpoint that repeat another: name -> the tensor it repeats."""
    if not c.mtp:
        return {}
    at, shared = family.prefix(c.layers), family.copies.items()
    return {at + k: family.whole[v] for k, v in shared if not (c.tied and v == HEAD)}
