import numpy as np
import pytest
from compiled import jit

from grpo_jax.algorithms import ADVANTAGES, Algorithm, compute_advantages
from grpo_jax.algorithms.advantages import generalized_advantages, whiten
from grpo_jax.errors import UsageError
from grpo_jax.types import StepRewards

RNG = np.random.default_rng(1)
STEP_ENDS = np.sort(RNG.integers(0, 6, (4, 4, 3)), -1)
STEP_ENDS[..., 2] = np.where(RNG.random((4, 4)) < 0.3, -1, STEP_ENDS[..., 2])
STEP_REWARDS = RNG.normal(size=(4, 4, 3)).astype(np.float32)
GAMMA, LAM = 0.9, 0.8
GROUP_RELATIVE = {
    *("batch_norm", "global_whiten_baseline", "group_mean", "group_norm"),
    *("leave_one_out", "length_weighted", "process"),
}

compute = jit(compute_advantages, static_argnums=0)


def steps(name, P, G):
    given = StepRewards(rewards=STEP_REWARDS[:P, :G], ends=STEP_ENDS[:P, :G])
    return {"steps": given} if name == "process" else {}


def advantages(name, rewards, mask, values=None, **fields):
    algorithm = Algorithm(advantage=name, gamma=GAMMA, lam=LAM, **fields)
    values = np.zeros(mask.shape, np.float32) if values is None else values
    out = compute(algorithm, rewards, mask, values=values, **steps(name, *rewards.shape))
    return np.broadcast_to(out, mask.shape)


def whitened(x, keep):
    data = [x[index] for index in zip(*np.nonzero(keep), strict=True)]
    mean = sum(data) / len(data)
    variance = sum((y - mean) ** 2 for y in data) / (len(data) - 1)
    return np.where(keep, (x - mean) / np.sqrt(variance + 1e-8), 0.0)


def backwards(rewards, mask, values, gamma, lam):
    """GAE by a walk over only each completion's valid tokens."""
    out = np.zeros(mask.shape)
    for p, g in np.ndindex(mask.shape[:2]):
        advantage = value = 0.0
        for n, t in enumerate(np.nonzero(mask[p, g])[0][::-1]):
            reward = rewards[p, g] if n == 0 and not np.isnan(rewards[p, g]) else 0.0
            delta = reward + gamma * value - values[p, g, t]
            advantage = delta + gamma * lam * advantage
            value = values[p, g, t]
            out[p, g, t] = advantage
    return out


def expected(name, rewards, mask, values):
    rewards, values = rewards.astype(np.float64), values.astype(np.float64)
    out = np.zeros(mask.shape)
    valid = ~np.isnan(rewards)
    if name == "accepted":
        return np.broadcast_to((np.nan_to_num(rewards) >= 1.0)[..., None], mask.shape)
    if name in ("gae", "global_whiten"):
        values, lam = (values, LAM) if name == "gae" else (np.zeros_like(values), 1.0)
        walked = backwards(rewards, mask, values, GAMMA, lam)
        return whitened(walked, mask & valid[..., None])
    for p in range(rewards.shape[0]):
        members = [g for g in range(rewards.shape[1]) if valid[p, g]]
        group = rewards[p, members]
        for g in members if len(members) > 1 else []:
            r = rewards[p, g]
            if name == "group_norm":
                out[p, g] = (r - group.mean()) / (group.std(ddof=1) + 1e-6)
            elif name in ("group_mean", "global_whiten_baseline"):
                out[p, g] = r - group.mean()
            elif name == "leave_one_out":
                out[p, g] = r - np.mean([rewards[p, j] for j in members if j != g])
            elif name == "batch_norm":
                out[p, g] = (r - group.mean()) / (rewards[valid].std(ddof=1) + 1e-6)
            elif name == "length_weighted":
                lengths = mask[p, members].sum(-1)
                out[p, g] = r - np.dot(lengths, group) / lengths.sum()
            elif name == "process":
                out[p, g] = process(p, g, members, rewards, mask)
    if name == "global_whiten_baseline":
        enough = valid.sum(-1, keepdims=True) > 1
        return whitened(out, mask & (valid & enough)[..., None])
    return out * mask if name == "process" else out


def process(p, g, members, rewards, mask):
    """Steps that end at or after t, and the outcome, a step that ends at the last valid token."""
    length = mask.shape[-1]
    scored = {j: [(r, e) for r, e in zip(STEP_REWARDS[p, j], STEP_ENDS[p, j], strict=True)
                  if e >= 0] for j in members}  # fmt: skip
    for j in members:
        if mask[p, j].any():
            scored[j].append((rewards[p, j], np.nonzero(mask[p, j])[0][-1]))
    every = np.array([r for steps in scored.values() for r, _ in steps], np.float64)
    normal = lambda r: (np.float64(r) - every.mean()) / (every.std(ddof=1) + 1e-6)  # noqa: E731
    return [sum(normal(r) for r, e in scored[g] if e >= t) for t in range(length)]


@pytest.mark.parametrize("abstained", [False, True], ids=["all", "some abstain"])
@pytest.mark.parametrize("name", ADVANTAGES)
def test_formula(batch, name, abstained):
    rewards = batch["rewards"].copy()
    if abstained:
        rewards[0, 0] = np.nan
        rewards[2, :3] = np.nan  # leaves one
        rewards[3] = np.nan
    got = advantages(name, rewards, batch["mask"], batch["values"])
    want = expected(name, rewards, batch["mask"], batch["values"])
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert np.all(got[np.isnan(rewards)] == 0)
    if abstained and name in GROUP_RELATIVE:
        assert np.all(got[2] == 0)


@pytest.mark.parametrize("reward", [0.1, 1 / 3, -7.3, 0.0, 1e6])
@pytest.mark.parametrize("name", [*sorted(GROUP_RELATIVE - {"process"}), "global_whiten"])
def test_without_spread_is_exactly_zero(batch, name, reward):
    rewards = np.full((4, 4), reward, np.float32)
    rewards[0, :2] = np.nextafter(rewards[0, :2], np.float32(np.inf))  # 0.1 + 0.2 against 0.3
    algorithm = Algorithm(advantage=name, gamma=1.0, std_eps=0.0)
    assert np.all(np.asarray(compute(algorithm, rewards, batch["mask"])) == 0)


def test_a_spread_group_beside_a_flat_one_keeps_its_signal(batch):
    rewards = np.zeros((4, 4), np.float32)
    rewards[1] = [1, 1, 1, 0]
    got = advantages("group_norm", rewards, batch["mask"])[..., 0]
    np.testing.assert_allclose(got[1], [0.5, 0.5, 0.5, -1.5], atol=1e-5)
    assert np.all(got[[0, 2, 3]] == 0)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_ddof_and_eps_are_fields(batch, ddof, eps):
    r = batch["rewards"].astype(np.float64)
    std = r.std(1, ddof=ddof, keepdims=True)
    got = advantages("group_norm", batch["rewards"], batch["mask"], std_ddof=ddof, std_eps=eps)
    np.testing.assert_allclose(got[..., 0], (r - r.mean(1, keepdims=True)) / (std + eps), atol=1e-5)


@pytest.mark.parametrize("name", sorted(GROUP_RELATIVE))
def test_a_group_of_one_is_refused(name):
    with pytest.raises(ValueError, match=f"{name!r}.*group must be at least 2, got 1"):
        advantages(name, np.ones((2, 1), np.float32), np.ones((2, 1, 3), bool))


@pytest.mark.parametrize("name", ["gae", "global_whiten"])
def test_a_group_of_one_is_enough_without_comparison(name):
    rewards = np.array([[1.0], [0.0], [3.0]], np.float32)
    got = advantages(name, rewards, np.ones((3, 1, 1), bool))[:, 0, 0]
    np.testing.assert_allclose(got, (rewards[:, 0] - 4 / 3) / rewards.std(ddof=1), atol=1e-5)


def test_gae_skips_masked_tokens_over():
    rewards = np.array([[0.0, 1.0, 99.0, 0.5]], np.float32)[None]
    values = np.array([[0.2, -0.1, np.nan, 0.4]], np.float32)[None]
    mask = np.array([[True, True, False, True]])[None]
    gae = jit(generalized_advantages)
    got = gae(rewards, values, mask, gamma=GAMMA, lam=LAM)
    valid = [0, 1, 3]
    arrays = (rewards[..., valid], values[..., valid], np.ones((1, 1, 3), bool))
    short = gae(*arrays, gamma=GAMMA, lam=LAM)
    for long, want in zip(map(np.asarray, got), short, strict=True):
        np.testing.assert_allclose(long[..., [0, 1, 3]], want, rtol=1e-6)
        assert long[0, 0, 2] == 0


def test_whiten_gives_mean_0_and_variance_1_over_valid_tokens_alone(batch):
    x = np.where(batch["mask"], batch["values"], np.float32(1e6))
    x = np.asarray(jit(whiten)(x, batch["mask"]))
    data = x[batch["mask"]]
    np.testing.assert_allclose([data.mean(), data.var(ddof=1)], [0, 1], atol=1e-5)
    assert np.all(x[~batch["mask"]] == 0)


def test_another_shape_than_one_a_completion_or_a_token_is_named(monkeypatch):
    monkeypatch.setitem(ADVANTAGES, "flat", lambda rewards, mask: rewards)
    with pytest.raises(UsageError, match=r"'flat' returns shape \[2, 3\]; .*\[2, 3, 1\] or"):
        compute_advantages(Algorithm(advantage="flat"), np.ones((2, 3)), np.ones((2, 3, 5), bool))


def test_a_missing_array_is_named(batch):
    with pytest.raises(ValueError, match="'gae' needs values"):
        compute_advantages(Algorithm(advantage="gae"), batch["rewards"], batch["mask"])
    with pytest.raises(ValueError, match="'process' needs step_rewards"):
        compute_advantages(Algorithm(advantage="process"), batch["rewards"], batch["mask"])
