import functools

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    """Compile for less time and run for more: these programs are tiny."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope="session")
def hugging_face(tmp_path_factory):
    """name of CASES -> that tiny model of Transformers, made once."""
    for module in ("torch", "transformers"):
        pytest.importorskip(module, reason=f"needs {module}, the independent source")
    from hugging_face import make

    return functools.cache(lambda name: make(name, tmp_path_factory.mktemp(name) / "model"))
