"""What every test shares; it runs before JAX is imported, and child processes inherit it."""

import gc
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAPPINGS = 25_000

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling takes most of the tests' time; a second run finds its programs here.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Where in the code each operation comes from takes a sixth of the time to write into programs.
os.environ.setdefault("JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS", "0")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "1")
# The emitters that fused loops had before compile in less than half the time. Later versions of
# XLA lose them, and an unknown flag ends the process.
if version("jaxlib").startswith("0.10."):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {flags}"
# Tracing makes many objects that live: looking for dead ones takes time.
gc.set_threshold(100_000, 50, 100)
# With two processes, the files that take longest begin, so that none is left over at the end.
LONGEST = (
    *("test_r1", "test_sharded_parts", "test_exactness", "test_families", "test_round_trip"),
    *("test_experiments", "test_critic", "test_reward_model", "test_notebooks", "test_overlap"),
)


def pytest_collection_modifyitems(items):
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def program():
    """A function (name, *arguments) -> how that program of experiments/ ends: returncode, stdout,
    stderr. Its processes are forks of one that has imported what they need; see tests/forked.py."""
    modules = "jax,grpo_jax.training.loading,grpo_jax.training.costs,grpo_jax.training.r1_report"
    command = [sys.executable, "-W", "ignore", "tests/forked.py", modules]
    env = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiles for less time
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=env, **pipe) as server:

        def program(name: str, *arguments: str) -> SimpleNamespace:
            print(json.dumps([name, *arguments]), file=server.stdin, flush=True)
            return SimpleNamespace(**json.loads(server.stdout.readline()))

        yield program


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
