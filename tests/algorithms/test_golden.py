"""verl 0.9.1's own numbers, in value and gradient.

Its conventions: losses take adv/grpo (std with ddof 1, eps 1e-6) and clip at 0.2; the dual clip of
3 never binds on this data; whitening has Bessel's correction and 1e-8 under the root.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import jit

from grpo_jax.algorithms import (
    PRESETS,
    Algorithm,
    compute_advantages,
    compute_returns,
    policy_loss,
    token_weights,
    value_loss,
)
from grpo_jax.algorithms.kl import KLS

GSPO = {"ratio": "sequence", "clip_low": 0.03, "clip_high": 0.04}
LOSSES = {
    "ppo_clip/token-mean": Algorithm(aggregation="token_mean", dual_clip=3.0),
    "ppo_clip/seq-mean-token-mean": Algorithm(aggregation="sequence_mean", dual_clip=3.0),
    "dapo": PRESETS["dapo"],
    "gspo_0.03_0.04": Algorithm(**GSPO),
    "gspo_0.03_0.04 by gspo_token": Algorithm(**{**GSPO, "ratio": "gspo_token"}),
}


def check(loss, golden, key):
    x = golden["new_values" if "value" in key else "logp"]
    value, gradient = jit(jax.value_and_grad(loss))(x)
    np.testing.assert_allclose(value, golden[f"loss/{key}"], atol=1e-5)
    np.testing.assert_allclose(gradient, golden[f"grad/{key}"], atol=1e-5)


@pytest.mark.parametrize(
    "key, algorithm",
    [
        ("grpo", PRESETS["grpo"]),
        ("dr_grpo", PRESETS["dr_grpo"]),
        ("rloo", Algorithm(advantage="leave_one_out")),
    ],
)
def test_group_advantages(golden, key, algorithm):
    mask = golden["mask"] > 0
    advantages = jit(compute_advantages, static_argnums=0)(algorithm, golden["rewards"], mask)
    np.testing.assert_allclose(advantages * mask, golden[f"adv/{key}"], atol=1e-5)


def test_gae_and_its_returns(golden):
    algorithm = Algorithm(advantage="gae", gamma=1.0, lam=0.95)
    mask = golden["mask"] > 0
    arguments = (algorithm, golden["rewards"], mask)
    advantages, returns = (jit(f, static_argnums=0) for f in (compute_advantages, compute_returns))
    advantages = advantages(*arguments, values=golden["values"])
    returns = returns(*arguments, golden["values"])
    np.testing.assert_allclose(advantages, golden["adv/gae_1.0_0.95"] * mask, atol=1e-5)
    np.testing.assert_allclose(returns, golden["returns_gae_1.0_0.95"] * mask, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_policy_losses(golden, name):
    algorithm, mask = LOSSES[name], golden["mask"] > 0

    def loss(logp):
        return policy_loss(
            algorithm,
            logp,
            mask=mask,
            advantages=golden["adv/grpo"],
            weights=token_weights(mask, algorithm.aggregation),
            token_share=token_weights(mask, "token_mean"),
            logp_old=golden["logp_old"],
        )[0]

    check(loss, golden, name.split()[0])


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_kl(golden, name):
    mask = golden["mask"] > 0
    weights = token_weights(mask, "token_mean")
    loss = lambda logp: jnp.sum(weights * KLS[name](logp, golden["logp_ref"], mask))  # noqa: E731
    check(loss, golden, f"kl_{name}/token-mean")


def test_value_loss(golden):
    mask = golden["mask"] > 0
    weights = token_weights(mask, "token_mean")
    returns = golden["returns_gae_1.0_0.95"]

    def loss(values):
        arrays = (values, golden["values"], returns, mask, weights)
        return value_loss(*arrays, value_clip=0.2, value_coef=1.0)[0]

    check(loss, golden, "value_0.2")
