"""What every test shares; it runs before JAX is imported, and child processes inherit it."""

import gc
import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAPPINGS = 25_000

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes most of the tests' time; a second run finds its programs here.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# The emitters that fused loops had before compile in less than half the time. Later versions of
# XLA lose them, and an unknown flag ends the process.
if version("jaxlib").startswith("0.10."):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {flags}"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden data and weights beside the repository, which not everyone has."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"golden data and weights are not at {path}")
    return path


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """Drop compiled programs before their memory mappings run out (65,530 a process on Linux):
    XLA's come to hundreds a program, and the next one would crash the interpreter."""
    yield
    if "jax" not in sys.modules:
        return
    import jax  # after the environment is set

    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MAPPINGS:
        jax.clear_caches()
        gc.collect()
