"""Routing against Transformers' routers and brute force; expert products against loops."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import TINY, softmax

from grpo_jax.models.config import Experts
from grpo_jax.models.experts import ROUTING, MixtureOfExperts, balance_loss, expert_outputs, route

N, E, A, C, F = 40, 8, 3, 6, 5
RNG = np.random.default_rng(0)
LOGITS = (2 * RNG.normal(size=(N, E))).astype(np.float32)
BIAS = RNG.normal(size=E).astype(np.float32)  # as large as the scores: it decides much
GROUPS = {"groups": 4, "top_groups": 2}
ROUTERS = {
    "deepseek_v2": Experts(E, A, F, scale=1.7),
    "deepseek_v2_groups": Experts(E, A, F, scale=1.7, **GROUPS),
    "deepseek_v3": Experts(
        *(E, A, F),
        **{"score": "sigmoid", "group_score": "top2", "normalise": True, "scale": 2.5},
        **{"bias": True, **GROUPS},
    ),
    "qwen3_moe": Experts(E, A, F, normalise=True),
}


def spread(weights, ids):
    """Weights [N, A] of ids as a row over all experts, [N, E]."""
    out = np.zeros((len(ids), E))
    np.put_along_axis(out, np.asarray(ids), np.asarray(weights), -1)
    return out


def routed(e):
    return route(e, jnp.asarray(LOGITS), jnp.asarray(BIAS) if e.bias else None)


def brute_force(e, logits, bias):
    """One token after another, one group after another, in float64."""
    out = np.zeros((len(logits), E))
    for n, row in enumerate(logits.astype(np.float64)):
        scores = 1 / (1 + np.exp(-row)) if e.score == "sigmoid" else softmax(row)
        choice = scores + (bias if e.bias else 0.0)
        width, best = E // e.groups, {"max": 1, "top2": 2}[e.group_score]
        worth = {
            g: sum(sorted(choice[g * width : (g + 1) * width])[-best:]) for g in range(e.groups)
        }
        kept = sorted(worth, key=worth.get)[-e.top_groups :]
        among = [i for i in range(E) if i // width in kept]
        chosen = sorted(among, key=lambda i: choice[i])[-e.active :]
        total = scores[chosen].sum() if e.normalise else 1.0
        out[n, chosen] = scores[chosen] / total * e.scale
    return out


@pytest.mark.parametrize("name", ROUTERS)
def test_routing_is_brute_force(name):
    e = ROUTERS[name]
    weights, ids, scores = routed(e)
    assert all(len(set(row)) == A for row in np.asarray(ids).tolist())
    np.testing.assert_allclose(spread(weights, ids), brute_force(e, LOGITS, BIAS), atol=1e-6)
    assert scores.shape == (N, E)


@pytest.mark.parametrize("name", ROUTERS)
def test_routing_is_that_of_transformers(name):
    torch = pytest.importorskip("torch", reason="needs torch, the independent source")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    e, family = ROUTERS[name], name.removesuffix("_groups")
    title = {"deepseek_v2": "DeepseekV2", "deepseek_v3": "DeepseekV3"}.get(family, "Qwen3Moe")
    config = getattr(transformers, f"{title}Config")(
        **{"hidden_size": E, "n_routed_experts": E, "num_experts": E, "num_experts_per_tok": A},
        **{"n_group": e.groups, "topk_group": e.top_groups, "norm_topk_prob": e.normalise},
        num_attention_heads=4,
        routed_scaling_factor=e.scale,
        topk_method="group_limited_greedy" if e.groups > 1 else "greedy",
    )
    module = getattr(transformers.models, family)
    module = getattr(module, f"modeling_{family}")
    names = ("TopkRouter", "TopKRouter")
    router = next(getattr(module, title + n) for n in names if hasattr(module, title + n))(config)
    with torch.no_grad():
        router.weight.copy_(torch.eye(E))  # its input is its logits
        if e.bias:
            router.e_score_correction_bias.copy_(torch.tensor(BIAS))
        _, weights, ids = router(torch.tensor(LOGITS))
    got = spread(*routed(e)[:2])
    np.testing.assert_allclose(got, spread(weights.numpy(), ids.numpy()), atol=1e-6)


def test_the_bias_shifts_the_choice_and_not_the_weights():
    e = dataclasses.replace(ROUTERS["deepseek_v3"], groups=1, top_groups=1, normalise=False)
    weights, ids, scores = routed(e)
    unbiased = np.asarray(routed(dataclasses.replace(e, bias=False))[1])
    assert np.mean(np.sort(ids) != np.sort(unbiased)) > 0.2
    np.testing.assert_allclose(weights, e.scale * np.take_along_axis(scores, ids, -1), rtol=1e-6)


def kernels():
    shapes = ((E, C, F), (E, C, F), (E, F, C))
    return [RNG.normal(size=s).astype(np.float32) / s[1] ** 0.5 for s in shapes]


X, KERNELS = RNG.normal(size=(N, C)).astype(np.float32), kernels()
WEIGHTS = RNG.uniform(size=(N, A)).astype(np.float32)
# Expert 5 serves nobody, expert 2 serves everyone.
IDS = np.array([[2, *RNG.choice([0, 1, 3, 4, 6, 7], 2, replace=False)] for _ in range(N)])
IDS = RNG.permuted(IDS, axis=-1).astype(np.int32)


def test_outputs_are_a_loop_over_tokens_and_experts():
    """No token is dropped, however many chose one expert."""
    want = np.zeros((N, C))
    gate, up, down = (k.astype(np.float64) for k in KERNELS)
    for n, a in np.ndindex(N, A):
        e = IDS[n, a]
        h = X[n] @ gate[e]
        want[n] += WEIGHTS[n, a] * ((h / (1 + np.exp(-h)) * (X[n] @ up[e])) @ down[e])
    got = expert_outputs(X, WEIGHTS, IDS, *KERNELS, nn.silu)
    np.testing.assert_allclose(got, want, atol=1e-5)


def dense(x, weights, ids, gate, up, down, act):
    """Every expert serves every token; weights of those not chosen are 0."""
    h = act(jnp.einsum("nc,ecf->nef", x, gate)) * jnp.einsum("nc,ecf->nef", x, up)
    whole = (weights[..., None] * jax.nn.one_hot(ids, E)).sum(1)
    return jnp.einsum("nef,efc,ne->nc", h, down, whole)


def test_gradients_are_those_of_the_dense_formulation():
    direction = RNG.normal(size=(N, C))

    def gradients(form):
        loss = lambda x, w, *k: (form(x, w, IDS, *k, nn.silu) * direction).sum()  # noqa: E731
        return jax.jit(jax.grad(loss, range(5)))(X, WEIGHTS, *KERNELS)

    got, want = gradients(expert_outputs), gradients(dense)
    for name, a, b in zip(("x", "weights", "gate", "up", "down"), got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=name)
    assert all(np.all(g[5] == 0) and np.abs(g[2]).max() > 1e-2 for g in got[2:])


def numpy_balance(e, ids, scores, valid):
    """Equations 17 to 20 of DeepSeek-V3 for one sequence."""
    rows = np.flatnonzero(valid)
    total = 0.0
    for i in range(E):
        f = sum(E / (A * len(rows)) for t in rows if i in ids[t])
        p = sum(scores[t, i] / scores[t].sum() / len(rows) for t in rows)
        total += f * p
    return total


def test_balance_loss_is_the_formula_on_ragged_sequences():
    e, shape = ROUTERS["deepseek_v3"], (2, 4, 5)
    _, ids, scores = (np.asarray(x).reshape(*shape, -1) for x in routed(e))
    valid = np.arange(5) < np.array([[5, 1, 3, 0], [2, 5, 4, 1]])[..., None]
    got = balance_loss(e, jnp.asarray(ids), jnp.asarray(scores), jnp.asarray(valid))
    assert got[0, 3] == 0
    for p, g in np.argwhere(valid.any(-1)):
        one = ids[p, g], scores[p, g].astype(np.float64), valid[p, g]
        assert got[p, g] == pytest.approx(numpy_balance(e, *one), rel=1e-5)
    even = np.full((1, 1, E, E), 1 / E)
    each = (np.arange(E)[:, None] + np.arange(A)) % E  # every expert serves A of E tokens
    perfect = balance_loss(e, jnp.asarray(each[None, None]), even, np.ones((1, 1, E), bool))
    assert float(perfect[0, 0]) == pytest.approx(1.0)


def test_the_load_counts_valid_tokens_and_adds_up():
    e = dataclasses.replace(ROUTERS["deepseek_v3"], shared=4)
    layer = MixtureOfExperts(dataclasses.replace(TINY, hidden=C, experts=e))
    x, valid = jnp.asarray(X), jnp.asarray(RNG.uniform(size=(2, 4, 5)) < 0.7)
    params = nn.unbox(layer.init(jax.random.key(0), x, valid))["params"]
    params["router_bias"] = jnp.asarray(BIAS)
    out, reports = layer.apply({"params": params}, x, valid, mutable=[ROUTING])
    _, ids, scores = route(e, x @ params["router"].T, params["router_bias"])
    (load,), (balance,) = reports[ROUTING]["load"], reports[ROUTING]["balance"]
    served = np.asarray(ids)[np.asarray(valid).ravel()]
    np.testing.assert_array_equal(load, np.bincount(served.ravel(), minlength=E))
    assert load.sum() == A * valid.sum()
    split = [np.asarray(a).reshape(2, 4, 5, -1) for a in (ids, scores)]
    assert float(balance) == pytest.approx(float(balance_loss(e, *split, valid).sum()))
    np.testing.assert_array_equal(layer.apply({"params": params}, x, valid), out)
    np.testing.assert_array_equal(layer.apply({"params": params}, x, None), out)
