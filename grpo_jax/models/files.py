"""The safetensors files of a Hugging Face directory. No JAX."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from grpo_jax.files import INDEX, read_object

SINGLE = "model.safetensors"
ROWS = 4096


def tensor_files(directory: Path) -> dict[str, str]:
    """Tensor name -> the file it lies in."""
    if (directory / INDEX).is_file():
        files = read_object(directory / INDEX).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(f, str) for f in files.values()):
            raise ValueError(f"{directory / INDEX}: not an index of safetensors: no weight_map")
        return files
    with opened(directory / SINGLE) as file:
        return dict.fromkeys(file.keys(), SINGLE)


def equal(directory: Path, files: dict[str, str], one: str, other: str) -> bool:
    """Whether two matrices of a directory hold the same numbers, read a few rows at a time."""
    import ml_dtypes  # noqa: F401  lets NumPy, and so safetensors, know bfloat16
    import numpy as np

    a, b = (opened(directory / files[name]).get_slice(name) for name in (one, other))
    if a.get_shape() != b.get_shape():
        return False
    count = a.get_shape()[0]
    parts = [slice(i, min(i + ROWS, count)) for i in range(0, count, ROWS)]
    return all(np.array_equal(a[part], b[part]) for part in parts)


def opened(path: Path) -> safe_open:
    """A safetensors file; OSError where there is none or it cannot be read, ValueError where
    it is cut off."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; valid: a directory with {SINGLE} or {INDEX}"
        )
    with path.open("rb"):  # the library says of a file that may not be read that there is none
        pass
    try:
        return safe_open(path, framework="np")
    except SafetensorError as error:
        raise ValueError(f"{path}: cut off, or no safetensors file: {error}") from error
