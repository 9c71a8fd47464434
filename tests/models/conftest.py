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
