"""Objects by name: an entry of a table, or an import path."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

from grpo_jax.errors import unknown

T = TypeVar("T")


def find(kind: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of that name, or what an import path "package.module:name" leads to.

    ValueError names what is not there, and the nearest that is; `kind` is what messages call it.
    """
    if name in table:
        return table[name]
    if ":" not in name:
        raise ValueError(f'{unknown(kind, name, table)}; or "package.module:name"')
    return cast(T, imported(kind, name))


def make(
    kind: str,
    name: str,
    table: Mapping[str, Callable[..., T]],
    methods: Sequence[str],
    *args: object,
    **options: object,
) -> T:
    """What the entry of a name makes of the arguments.

    ValueError as `find`, and for what cannot be called with them, or lacks one of the methods.
    """
    maker = find(kind, name, table)
    try:
        inspect.signature(maker).bind(*args, **options)
    except (TypeError, ValueError) as error:  # ValueError for a builtin, which has no signature
        raise ValueError(f"{kind} {name!r} cannot be made as the others are: {error}") from error
    made = maker(*args, **options)
    if missing := [m for m in methods if not callable(getattr(made, m, None))]:
        raise ValueError(f"{kind} {name!r} is no {kind}: it lacks {', '.join(missing)}")
    return made


def imported(kind: str, path: str) -> object:
    """What an import path "package.module:name" leads to; ValueError as `find`."""
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:  # ValueError for a path without a module
        raise ValueError(f"{kind} {path!r}: cannot import {module_name!r}: {error}") from error
    if not hasattr(module, name):
        candidates = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        raise ValueError(f"{kind} {path!r}: {unknown('name', name, candidates)}")
    found = getattr(module, name)
    if not callable(found):
        raise ValueError(f"{kind} {path!r}: is of type {type(found).__name__}; valid: a callable")
    return found
