import numpy as np
import pytest

from grpo_jax.models.attention import Cache, Prefix, attend
from grpo_jax.models.rope import rotate

P, K, G, R, T, U, S, D = 3, 2, 3, 2, 4, 5, 6, 4
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


Q, OWN = normal(P, K, G, R, T, D), Cache(normal(P, K, G, D, U), normal(P, K, G, U, D))
PREFIX = Prefix(normal(P, K, D, S), normal(P, K, S, D))
PREFIX_MASK = np.arange(S) >= np.array([0, 4, S])[:, None]  # whole, left-padded, all padding
CAUSAL = np.arange(U) <= np.arange(T)[:, None]


def brute_force(q, own, own_mask, prefix=None, prefix_mask=None, cap=None):
    own_mask = np.broadcast_to(own_mask, (P, K, G, T, U))
    out = np.zeros(q.shape)
    for p, k, g, r, t in np.ndindex(q.shape[:-1]):
        seen = own_mask[p, k, g, t]
        keys, values = own.k[p, k, g].T[seen], own.v[p, k, g][seen]
        if prefix is not None:
            keys = np.concatenate([prefix.k[p, k].T[prefix_mask[p]], keys])
            values = np.concatenate([prefix.v[p, k][prefix_mask[p]], values])
        logits = keys.astype(np.float64) @ q[p, k, g, r, t].astype(np.float64)
        logits = cap * np.tanh(logits / cap) if cap else logits
        weight = np.exp(logits - logits.max())
        out[p, k, g, r, t] = weight / weight.sum() @ values
    return out


def own_unseen():
    """Completion 1 sees nothing of its own, where the prompt is there to be seen."""
    mask = np.broadcast_to(CAUSAL, (P, K, G, T, U)).copy()
    mask[:2, :, 1] = False
    return mask


MASKS = {"causal": CAUSAL[None, None, None], "own part unseen": own_unseen()}


@pytest.mark.parametrize("scale", [1.0, 1e4])  # exp of the logits themselves would overflow
@pytest.mark.parametrize("own_mask", MASKS.values(), ids=MASKS)
def test_two_parts_are_one_softmax_over_all_visible_keys(own_mask, scale):
    args = (np.float32(scale) * Q, OWN, own_mask, PREFIX)
    got = attend(*args, PREFIX_MASK[:, None, None, None, None])
    np.testing.assert_allclose(got, brute_force(*args, PREFIX_MASK), atol=1e-5)


def test_logits_are_capped_in_both_parts():
    args = (3 * Q, OWN, MASKS["causal"], PREFIX)
    got = attend(*args, PREFIX_MASK[:, None, None, None, None], softcap=2.0)
    np.testing.assert_allclose(got, brute_force(*args, PREFIX_MASK, cap=2.0), atol=1e-5)
    assert np.abs(got - brute_force(*args, PREFIX_MASK)).max() > 0.1


def test_without_a_prefix_it_is_plain_attention():
    args = (Q, OWN, MASKS["causal"])
    np.testing.assert_allclose(attend(*args), brute_force(*args), atol=1e-5)


def test_rotation_depends_on_distance_alone():
    x, y = normal(1, 1, 1, 1, D), normal(1, 1, 1, 1, D)
    frequency = np.array([1.0, 50.0**-0.5], np.float32)
    turn = lambda i: tuple(f(i * frequency)[None, None, None] for f in (np.cos, np.sin))  # noqa: E731
    at = lambda x, i: rotate(x, turn(i))  # noqa: E731
    dot = lambda i, j: float((at(x, i) * at(y, j)).sum())  # noqa: E731
    np.testing.assert_allclose(dot(3, 1), dot(9, 7), atol=1e-5)
    np.testing.assert_allclose(at(x, 0), x)
    assert abs(dot(3, 1) - dot(1, 3)) > 1e-3
