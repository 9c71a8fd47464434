"""The NumPy decoder of tests/models is the independent source here too."""

import sys
from pathlib import Path

import jax
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "models"))


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    """Compile for less time and run for more: these programs are tiny."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)
