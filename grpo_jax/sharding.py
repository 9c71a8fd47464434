"""Where arrays live: one mesh (data, fsdp, tensor) and one table of logical axes."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

T = TypeVar("T")  # a pytree

AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. Batches are split over data and fsdp; parameters are kept in pieces
# over fsdp and computed with in pieces over tensor.
RULES = (
    ("prompts", ("data", "fsdp")),
    ("tokens", ("data", "fsdp")),
    ("hidden", None),
    ("embed", "fsdp"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("norm", None),
    ("layers", None),
)


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of data x fsdp x tensor devices, this process's by default; ValueError if there are
    fewer devices.
    """
    size, found = data * fsdp * tensor, jax.devices() if devices is None else devices
    if size > len(found):
        raise ValueError(
            f"mesh data={data} x fsdp={fsdp} x tensor={tensor} needs {size} devices; "
            f"there are {len(found)}"
        )
    shape = (data, fsdp, tensor)
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * 3, devices=found[:size])


@contextlib.contextmanager
def using(mesh: Mesh) -> Iterator[None]:
    """Make logical axis names inside models mean `mesh`."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield


def unbox(tree: T) -> T:
    """The values in a pytree of Flax's boxes, which name logical axes, without placing them."""
    is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)  # noqa: E731
    return jax.tree.map(lambda x: x.value if is_box(x) else x, tree, is_leaf=is_box)


def shardings(abstract: T, mesh: Mesh) -> T:
    """NamedShardings of a pytree of boxed shapes (`jax.eval_shape` of an init), unboxed.

    A dimension that its mesh axes do not divide is kept whole on every device.
    """
    specs = nn.logical_to_mesh(nn.get_partition_spec(abstract), RULES)

    def fitted(leaf, spec):
        axes = [
            axis if leaf.shape[i] % _size(mesh, axis) == 0 else None for i, axis in enumerate(spec)
        ]
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(fitted, unbox(abstract), specs)


def _size(mesh: Mesh, axis: str | tuple[str, ...] | None) -> int:
    names = (axis,) if isinstance(axis, str) else axis or ()
    size = 1
    for name in names:
        size *= mesh.shape[name]
    return size


def put_batch(batch: T, mesh: Mesh) -> T:
    """Put host arrays [P, ...] on the mesh, P split over data and fsdp where it divides."""

    def put(x):
        split = ("data", "fsdp") if x.shape[0] % _size(mesh, ("data", "fsdp")) == 0 else None
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(split)))

    return jax.tree.map(put, batch)
