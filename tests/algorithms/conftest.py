"""One ragged batch, P=4 G=4 T=6, with everything that goes wrong in practice."""

import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden(shared):
    path = shared / "golden" / "verl_0.9.1.npz"
    if not path.exists():
        pytest.skip(f"golden vectors are not at {path}")
    return dict(np.load(path))


@pytest.fixture(scope="session")
def batch():
    """float32 arrays; one fully masked completion, one of length 1, one with a masked middle."""
    rng = np.random.default_rng(0)
    shape = (4, 4, 6)
    lengths = rng.integers(2, 7, shape[:2])
    lengths[1, 2] = 0
    lengths[0, 1] = 1
    mask = np.arange(shape[-1]) < lengths[..., None]
    mask[3, 0] = [True, True, False, False, True, True]
    logp_old = -rng.exponential(1.0, shape)
    arrays = {
        "rewards": rng.normal(size=shape[:2]).round(1),
        "logp": logp_old + 0.3 * rng.normal(size=shape),
        "logp_old": logp_old,
        "logp_rollout": logp_old + 0.5 * rng.normal(size=shape),
        "logp_ref": logp_old + 0.5 * rng.normal(size=shape),
        "values": rng.normal(size=shape),
        "entropy": rng.exponential(1.0, shape),
    }
    return {"mask": mask} | {name: x.astype(np.float32) for name, x in arrays.items()}


@pytest.fixture(scope="session")
def garbage(batch):
    """The same batch with infinities and NaN wherever the mask is False."""
    poison = np.resize(np.array([np.nan, np.inf, -np.inf], np.float32), batch["mask"].shape)
    per_token = batch.keys() - {"mask", "rewards"}
    return batch | {k: jnp.where(batch["mask"], batch[k], poison) for k in per_token}
