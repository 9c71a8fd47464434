import jax
import numpy as np
import pytest
from compiled import jit

from grpo_jax.algorithms import token_weights, value_loss


def arrays(b):
    old = b["values"]
    return b["entropy"] - 0.5, old, b["logp"], b["mask"]


@pytest.mark.parametrize("value_clip", [0.2, None])
def test_formula(batch, value_clip):
    new, old, returns, mask = arrays(batch)
    weights = token_weights(mask, "token_mean")
    got, metrics = value_loss(
        new, old, returns, mask, weights, value_clip=value_clip, value_coef=0.3
    )
    losses, clipped = [], 0
    for v, v0, r in zip(new[mask], old[mask], returns[mask], strict=True):
        plain, bounded = (v - r) ** 2, (v - r) ** 2
        if value_clip is not None:
            bounded = (min(max(v, v0 - value_clip), v0 + value_clip) - r) ** 2
        losses.append(0.3 * 0.5 * max(plain, bounded))
        clipped += bounded > plain
    assert clipped > 0 or value_clip is None
    np.testing.assert_allclose(got, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(metrics["val/clipfrac"], clipped / len(losses), rtol=1e-5)


def test_gradient_is_the_new_values_alone_and_garbage_stays_out(batch, garbage):
    weights = token_weights(batch["mask"], "token_mean")

    def gradient(b):
        new, old, returns, mask = arrays(b)
        loss = lambda *x: value_loss(*x, mask, weights, value_clip=0.2, value_coef=1.0)[0]  # noqa: E731
        return jit(jax.grad(loss, argnums=(0, 1, 2)))(new, old, returns)

    clean, dirty = gradient(batch), gradient(garbage)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    assert np.any(clean[0] != 0) and not np.any(clean[1]) and not np.any(clean[2])
