"""The assembled loss against NumPy loops in float64, and against itself cut into pieces."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from compiled import jit

from grpo_jax.algorithms import (
    PRESETS,
    Algorithm,
    compute_advantages,
    compute_returns,
    policy_loss,
    rollout_correction,
    select_tokens,
    token_weights,
)
from grpo_jax.algorithms.kl import KLS
from grpo_jax.types import StepRewards

VARIANTS = PRESETS | {
    "gspo_token": dataclasses.replace(PRESETS["gspo"], ratio="gspo_token"),
    "capped": Algorithm(ratio_cap=1.3, dual_clip=1.1),
    "unbiased_kl": Algorithm(beta=0.1, kl_unbiased=True, aggregation="token_mean"),
    "tis": Algorithm(tis_mode="truncate", tis_cap=1.2, entropy_bonus=0.01),
    "top_entropy": Algorithm(token_selection="top_entropy"),
    "clip_cov": Algorithm(token_selection="clip_cov", clip_cov_fraction=0.2, clip_cov_low=0.1),
    "kl_cov": Algorithm(token_selection="kl_cov", kl_cov_fraction=0.2),
}


def prepare(algorithm, batch):
    """What a trainer computes once on the whole minibatch, as NumPy arrays."""
    return jax.tree.map(np.asarray, compute_prepared(algorithm, batch))


@functools.partial(jit, static_argnums=0)
def compute_prepared(algorithm, batch):
    mask = batch["mask"]
    kl = KLS[algorithm.kl](batch["logp_old"], batch["logp_ref"], mask)
    steps = StepRewards(rewards=batch["rewards"][..., None] ** 2, ends=np.ones((4, 4, 1), int))
    advantages = compute_advantages(
        algorithm, batch["rewards"], mask, kl=kl, values=batch["values"], steps=steps
    )
    prepared = {
        "mask": mask,
        "advantages": advantages,
        "weights": token_weights(mask, algorithm.aggregation, 8),
        "token_share": token_weights(mask, "token_mean"),
        "logp_old": batch["logp_old"],
        "logp_ref": batch["logp_ref"],
        "entropy": batch["entropy"],
        "correction": rollout_correction(algorithm, batch["logp_old"], batch["logp_rollout"], mask),
        "selection": select_tokens(
            algorithm,
            mask,
            advantages=advantages,
            logp_rollout=batch["logp_rollout"],
            entropy=batch["entropy"],
            rng=jax.random.key(0),
        ),
    }
    return {name: x for name, x in prepared.items() if x is not None}


@functools.partial(jit, static_argnums=0)
def value_and_grad(algorithm, logp, prepared):
    loss = lambda x: policy_loss(algorithm, x, **prepared)  # noqa: E731
    return jax.value_and_grad(loss, has_aux=True)(logp)


def cut(prepared, index):
    return {name: x[index] for name, x in prepared.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_micro_batches_add_up_to_the_whole(batch, name):
    algorithm = VARIANTS[name]
    prepared = prepare(algorithm, batch)
    (loss, metrics), gradient = value_and_grad(algorithm, batch["logp"], prepared)
    assert np.abs(gradient).max() > 1e-4  # zeros would add up to anything
    cuts = [slice(0, 2), slice(2, 4)]
    pieces = [value_and_grad(algorithm, batch["logp"][c], cut(prepared, c)) for c in cuts]
    np.testing.assert_allclose(np.concatenate([p[1] for p in pieces]), gradient, atol=1e-6)
    np.testing.assert_allclose(sum(p[0][0] for p in pieces), loss, atol=1e-6)
    for key, value in metrics.items():
        np.testing.assert_allclose(sum(p[0][1][key] for p in pieces), value, atol=1e-6)


def test_a_shared_parameters_gradient_adds_up_over_uneven_pieces(batch):
    """The gradient that an optimizer sees, cut into single completions."""
    algorithm = PRESETS["gspo"]
    prepared = prepare(algorithm, batch)

    @jit
    def gradient(logp, prepared):
        loss = lambda bias: policy_loss(algorithm, logp + bias, **prepared)[0]  # noqa: E731
        return jax.grad(loss)(np.zeros(logp.shape[-1], np.float32))

    whole = gradient(batch["logp"], prepared)
    assert np.abs(whole).max() > 1e-4
    cuts = [np.s_[p : p + 1, g : g + 1] for p, g in np.ndindex(4, 4)]
    total = sum(gradient(batch["logp"][c], cut(prepared, c)) for c in cuts)
    np.testing.assert_allclose(total, whole, atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_garbage_at_masked_positions_changes_nothing(batch, garbage, name):
    algorithm = VARIANTS[name]
    clean = value_and_grad(algorithm, batch["logp"], prepare(algorithm, batch))
    dirty = value_and_grad(algorithm, garbage["logp"], prepare(algorithm, garbage))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    assert np.all(np.asarray(dirty[1])[~batch["mask"]] == 0)


# The penalty adds to every surrogate, so each estimator is tried once beside all the variants.
PENALISED = {f"beta {kl}": Algorithm(beta=0.01, kl=kl) for kl in KLS}


@pytest.mark.parametrize("size", [200.0, -1e4])
@pytest.mark.parametrize("name", VARIANTS | PENALISED)
def test_huge_log_ratios_stay_finite(batch, name, size):
    algorithm = (VARIANTS | PENALISED)[name]
    prepared = prepare(algorithm, batch)
    # Both signs in every completion.
    shift = size * np.where(np.arange(6) % 2, 1, -0.5).astype(np.float32)
    prepared["logp_old"] = batch["logp"] - shift
    prepared["logp_ref"] = batch["logp"] + shift
    (loss, metrics), gradient = value_and_grad(algorithm, batch["logp"], prepared)
    for x in (loss, gradient, *metrics.values()):
        assert np.all(np.isfinite(x))


def reference_loss(a, logp, frozen, b, completions):
    """The formulas of the papers over each completion's valid tokens; `frozen` is detached logp."""
    total, weights = 0.0, b["weights"]
    for p, g in completions:
        tokens = np.nonzero(b["mask"][p, g])[0]
        if not len(tokens):
            continue
        new, old, ref = (x[p, g, tokens] for x in (logp, b["logp_old"], b["logp_ref"]))
        detached = frozen[p, g, tokens]
        advantage = np.broadcast_to(b["advantages"], b["mask"].shape)[p, g, tokens]
        w = {
            "token": np.exp(new - old),
            "sequence": np.full(len(tokens), np.exp(np.mean(new - old))),
            "gspo_token": np.exp(np.mean(detached - old)) * np.exp(new - detached),
        }[a.ratio]
        loss = np.array(
            [surrogate(a, *x) for x in zip(w, advantage, new, detached - old, strict=True)]
        )
        if a.surrogate == "gmpo":
            sided = [
                min(x, a.clip_high) if y > 0 else max(x, -a.clip_low)
                for x, y in zip(new - old, advantage, strict=True)
            ]
            loss = -advantage * np.exp(np.mean(sided))
        if "correction" in b:
            loss = loss * b["correction"][p, g, tokens]
        if a.token_selection == "kl_cov":
            loss = loss + a.kl_cov_coef * b["selection"][p, g, tokens] * np.abs(new - old)
        elif a.token_selection != "none":
            loss = loss * b["selection"][p, g, tokens]
        if a.kl_in == "loss":
            d = ref - new
            kl = {"k1": -d, "k2": d**2 / 2, "k3": np.exp(d) - d - 1}[a.kl]
            loss = loss + a.beta * kl * (np.exp(new - old) if a.kl_unbiased else 1)
        loss = loss - a.entropy_bonus * b["entropy"][p, g, tokens]
        total += np.sum(weights[p, g, tokens] * loss)
    return total


def surrogate(a, w, advantage, logp, detached_log_ratio):
    if a.token_selection == "kl_cov":  # equation 11 of 2505.22617 has no clip
        return -w * advantage
    if a.surrogate == "cispo":
        weight = np.clip(np.exp(detached_log_ratio), 1 - a.clip_low, 1 + a.clip_high)
        return -weight * advantage * logp
    if a.surrogate == "sapo":
        tau = a.sapo_tau_pos if advantage > 0 else a.sapo_tau_neg
        return -4 / tau / (1 + np.exp(-tau * (w - 1))) * advantage
    if a.surrogate == "reinforce":
        return -advantage * logp
    clipped = min(max(w, 1 - a.clip_low), 1 + a.clip_high)
    w = w if a.ratio_cap is None else min(w, a.ratio_cap)
    loss = -min(w * advantage, clipped * advantage)
    if a.dual_clip is not None and advantage < 0:
        loss = min(loss, -a.dual_clip * advantage)
    return loss


@pytest.mark.parametrize("name", VARIANTS)
def test_value_and_gradient_against_the_formula(batch, name):
    algorithm = VARIANTS[name]
    prepared = prepare(algorithm, batch)
    (loss, _), gradient = value_and_grad(algorithm, batch["logp"], prepared)
    exact = {k: np.asarray(x, np.float64) if k != "mask" else x for k, x in prepared.items()}
    logp = batch["logp"].astype(np.float64)
    reference = functools.partial(reference_loss, algorithm, frozen=logp, b=exact)
    every = list(np.ndindex(logp.shape[:2]))
    np.testing.assert_allclose(loss, reference(logp, completions=every), atol=1e-5)
    h = 1e-6
    for index in zip(*np.nonzero(batch["mask"]), strict=True):
        step = np.zeros_like(logp)
        step[index] = h
        # No other completion's loss depends on this token.
        up, down = (reference(logp + s, completions=[index[:2]]) for s in (step, -step))
        np.testing.assert_allclose(gradient[index], (up - down) / (2 * h), atol=2e-5)


@pytest.mark.parametrize("surrogate", ["clip", "cispo", "gmpo"])
def test_kl_cov_pushes_nothing_where_the_policy_has_not_moved_and_clips_nothing(surrogate):
    """-w A + coef |log w|, whose gradient in logp is -w A + coef sign(log w), and -A at w = 1."""
    algorithm = Algorithm(token_selection="kl_cov", surrogate=surrogate, kl_cov_coef=0.7)
    logp, ones = np.full((1, 1, 1), -0.5, np.float32), np.ones((1, 1, 1), np.float32)
    fixed = {"mask": ones > 0, "weights": ones, "token_share": ones, "selection": ones}
    for drift, advantage in itertools.product((0.0, 0.5, -0.5, 2.0, -2.0, -30.0), (1.5, -1.5)):
        arrays = fixed | {"logp_old": logp - np.float32(drift), "advantages": advantage * ones}
        (loss, metrics), gradient = value_and_grad(algorithm, logp, arrays)
        gain, metrics = np.exp(drift) * advantage, jax.device_get(metrics)
        np.testing.assert_allclose(gradient[0, 0, 0], 0.7 * np.sign(drift) - gain, rtol=1e-5)
        if surrogate != "cispo":  # whose gradient is the same, but not its value
            np.testing.assert_allclose(loss, 0.7 * abs(drift) - gain, rtol=1e-5)
        assert metrics["clip_ratio/region_mean"] == 0
        np.testing.assert_allclose(metrics["approx_kl"], np.expm1(drift) - drift, rtol=1e-4)


def test_without_logp_old_the_loss_is_on_policy(batch):
    algorithm = Algorithm(aggregation="token_mean", entropy_bonus=0.1)
    prepared = prepare(algorithm, batch)
    del prepared["logp_old"]
    (_, metrics), gradient = value_and_grad(algorithm, batch["logp"], prepared)
    np.testing.assert_allclose(gradient, -prepared["advantages"] * prepared["weights"], atol=1e-6)
    assert metrics["approx_kl"] == metrics["clip_ratio/region_mean"] == 0


def test_gradient_flows_through_logp_and_entropy_alone(batch):
    algorithm = Algorithm(beta=0.1, entropy_bonus=0.5, kl_unbiased=True)
    prepared = prepare(algorithm, batch)
    names = ("advantages", "logp_old", "logp_ref", "entropy")

    def loss(arrays):
        return policy_loss(algorithm, batch["logp"], **(prepared | arrays))[0]

    gradients = jit(jax.grad(loss))({name: prepared[name] for name in names})
    np.testing.assert_allclose(gradients.pop("entropy"), -0.5 * prepared["weights"], atol=1e-7)
    for gradient in gradients.values():
        assert np.all(gradient == 0)


def test_metrics_are_token_means(batch):
    algorithm = Algorithm(beta=0.1)
    prepared = prepare(algorithm, batch)
    (_, metrics), _ = value_and_grad(algorithm, batch["logp"], prepared)
    mask = batch["mask"]
    logp, old, ref = (batch[k].astype(np.float64)[mask] for k in ("logp", "logp_old", "logp_ref"))
    w = np.exp(logp - old)
    advantages = np.broadcast_to(prepared["advantages"], mask.shape)[mask]
    low, high = (w < 0.8) & (advantages < 0), (w > 1.2) & (advantages > 0)
    assert low.any() and high.any()
    expected = {
        "kl": np.mean(np.exp(ref - logp) - (ref - logp) - 1),
        "entropy": batch["entropy"][mask].mean(),
        "clip_ratio/low_mean": low.mean(),
        "clip_ratio/high_mean": high.mean(),
        "clip_ratio/region_mean": (low | high).mean(),
        "approx_kl": np.mean(w - 1 - np.log(w)),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)


@pytest.mark.parametrize(
    "algorithm, missing",
    [
        (Algorithm(beta=0.1), "logp_ref"),
        (Algorithm(entropy_bonus=0.1), "entropy"),
        (Algorithm(token_selection="top_entropy"), "selection"),
    ],
)
def test_a_missing_array_is_named(batch, algorithm, missing):
    prepared = prepare(algorithm, batch)
    del prepared[missing]
    with pytest.raises(ValueError, match=missing):
        policy_loss(algorithm, batch["logp"], **prepared)


def test_kl_in_the_reward_reaches_group_and_token_advantages(batch):
    mask, rewards = batch["mask"], batch["rewards"]
    kl = np.where(mask, batch["logp_old"] - batch["logp_ref"], np.nan)
    group = Algorithm(advantage="group_mean", kl="k1", kl_in="reward", beta=0.3)
    advantages, returns = (jit(f, static_argnums=0) for f in (compute_advantages, compute_returns))
    paid = rewards - 0.3 * np.nansum(kl, -1)
    want = paid - paid.mean(1, keepdims=True)
    got = advantages(group, rewards, mask, kl=kl)[..., 0]
    np.testing.assert_allclose(got, want, atol=1e-5)

    # With gamma = lam = 1 and no critic, the return of the first token is the whole paid reward.
    critic = dataclasses.replace(group, advantage="gae", gamma=1.0, lam=1.0)
    got = returns(critic, rewards, mask, np.zeros_like(kl), kl=kl)[..., 0]
    np.testing.assert_allclose(got[mask[..., 0]], paid[mask[..., 0]], atol=1e-5)
    with pytest.raises(ValueError, match="kl_in 'reward' needs kl"):
        compute_advantages(group, rewards, mask)


def test_an_abstained_completion_teaches_the_critic_nothing(batch):
    rewards = batch["rewards"].copy()
    rewards[0, 0] = np.nan
    algorithm = PRESETS["ppo"]
    kl = np.ones_like(batch["values"])
    compute = jit(compute_returns, static_argnums=0)
    returns = compute(algorithm, rewards, batch["mask"], batch["values"], kl=kl)
    own = np.where(batch["mask"], batch["values"], 0)
    np.testing.assert_array_equal(returns[0, 0], own[0, 0])
    assert not np.allclose(returns[1:], own[1:])


def test_one_token_completions(batch):
    for name in ("grpo", "gspo", "gmpo", "rloo", "ppo"):
        algorithm = PRESETS[name]
        short = {k: x[..., :1] if x.ndim == 3 else x for k, x in batch.items()}
        (loss, _), gradient = value_and_grad(algorithm, short["logp"], prepare(algorithm, short))
        assert np.isfinite(loss), name
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0), name


def test_nothing_valid_is_a_zero_loss(batch):
    nothing = batch | {"mask": np.zeros_like(batch["mask"])}
    for name in ("grpo", "gspo", "gmpo", "ppo"):
        prepared = prepare(PRESETS[name], nothing)
        (loss, metrics), gradient = value_and_grad(PRESETS[name], batch["logp"], prepared)
        assert loss == 0 and np.all(gradient == 0), name
        assert all(value == 0 for value in metrics.values()), name


def test_an_algorithm_is_a_static_argument_of_jit(batch):
    prepared = prepare(PRESETS["grpo"], batch)
    jitted = jax.jit(policy_loss, static_argnums=0)
    loss, _ = jitted(PRESETS["grpo"], batch["logp"], **prepared)
    eager, _ = policy_loss(PRESETS["grpo"], batch["logp"], **prepared)
    np.testing.assert_allclose(loss, eager, rtol=1e-6)
