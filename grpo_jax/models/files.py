"""The safetensors files of a Hugging Face directory. No JAX."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  lets NumPy, and so safetensors, know bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open

from grpo_jax.folders import INDEX

SINGLE = "model.safetensors"
ROWS = 4096


def tensor_files(directory: Path) -> dict[str, str]:
    """Tensor name -> the file it lies in."""
    if (directory / INDEX).is_file():
        try:
            return dict(json.loads((directory / INDEX).read_text())["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{directory / INDEX}: not an index of safetensors") from error
    with opened(directory / SINGLE) as file:
        return dict.fromkeys(file.keys(), SINGLE)


def equal(directory: Path, files: dict[str, str], one: str, other: str) -> bool:
    """Whether two matrices of a directory hold the same numbers, read a few rows at a time."""
    a, b = (opened(directory / files[name]).get_slice(name) for name in (one, other))
    if a.get_shape() != b.get_shape():
        return False
    rows = range(0, a.get_shape()[0], ROWS)
    return all(np.array_equal(a[i : i + ROWS], b[i : i + ROWS]) for i in rows)


def opened(path: Path) -> Any:
    """A safetensors file; FileNotFoundError where there is none, ValueError where it is cut off."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; valid: a directory with {SINGLE} or {INDEX}"
        )
    try:
        return safe_open(path, framework="np")
    except SafetensorError as error:
        raise ValueError(f"{path}: cut off, or no safetensors file: {error}") from error
