"""PPO's critic: values, returns and gradients against loops over full rows in NumPy float64."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import compile_fast, reference, tiny_config  # noqa: F401

from grpo_jax.algorithms import PRESETS, Algorithm, validate
from grpo_jax.errors import UsageError
from grpo_jax.learning.optimizer import Optimizer, make_optimizer
from grpo_jax.learning.policy import Policy
from grpo_jax.learning.prepare import prepare
from grpo_jax.learning.state import Critic, abstract_state, init_state
from grpo_jax.learning.update import update
from grpo_jax.models.decoder import Decoder
from grpo_jax.runs import checkpoints
from grpo_jax.sharding import make_mesh
from grpo_jax.training import rl as trainer
from grpo_jax.training.experiment import build
from grpo_jax.types import Rollouts

C = dataclasses.replace(reference.TINY, layers=1)
MODEL = Decoder(C)
POLICY, BODY, REFERENCE = (reference.random_params(C, seed=i) for i in range(3))
P, S, G, T = 3, 5, 2, 4
BETA, CLIP, VALUE_CLIP, COEFFICIENT, GAMMA, LAM = 0.3, 0.2, 0.3, 0.7, 0.9, 0.8
PPO = dataclasses.replace(
    PRESETS["ppo"], beta=BETA, value_clip=VALUE_CLIP, value_coef=COEFFICIENT, gamma=GAMMA, lam=LAM
)
SGD = Optimizer(
    None, lambda _: optax.apply_if_finite(optax.inject_hyperparams(optax.sgd)(learning_rate=1.0), 9)
)
rng = np.random.default_rng(0)
PROMPTS = reference.make_prompts([5, 2, 3], S, C.vocab_size)
TOKENS = rng.integers(1, C.vocab_size, (P, G, T)).astype(np.int32)
MASK = np.arange(T) < np.array([[4, 2], [1, 3], [4, 4]])[..., None]
REWARDS = rng.normal(size=(P, G)).astype(np.float32)
VALUE = rng.normal(size=C.hidden).astype(np.float32) * 0.3


def critic_of(kind):
    return Critic(kind=kind, optimizer=SGD)


@functools.cache
def begun(kind):
    key, mesh = jax.random.key(0), make_mesh()
    params = jax.tree.map(jnp.asarray, POLICY)
    critic = critic_of(kind)
    return init_state(MODEL, SGD, key, mesh, reference=True, params=params, critic=critic)


def state_with(kind, policy=POLICY, body=BODY, value=VALUE):
    state = jax.tree.map(jnp.copy, begun(kind))
    params = {"value": value}
    if kind == "network":
        params["body"] = {k: v for k, v in body.items() if k != "head"}
    policy, ref, params = jax.tree.map(jnp.asarray, (policy, REFERENCE, params))
    critic = state.critic.replace(params=params)
    return state.replace(policy=Policy(trained=policy), reference=ref, critic=critic)


def prepared(state, algorithm=PPO):
    logp = numpy_logp(POLICY).astype(np.float32)
    finished = np.ones((P, G), bool)
    rollouts = Rollouts(
        prompts=PROMPTS,
        tokens=TOKENS,
        mask=MASK,
        logp=logp,
        entropy=np.zeros_like(logp),
        finished=finished,
    )
    return prepare(state, rollouts, REWARDS, model=MODEL, algorithm=algorithm, temperature=1.0)


def numpy_logp(params):
    return reference.stats(reference.completion_logits(params, C, PROMPTS, TOKENS, MASK), TOKENS)[0]


def numpy_values(body, value):
    """A head whose first row is the critic's says V where the decoder says logits."""
    head = np.zeros((C.vocab_size, C.hidden))
    head[0] = value
    whole = {**body, "head": head}
    return reference.completion_logits(whole, C, PROMPTS, TOKENS, MASK)[..., 0]


def numpy_returns(values):
    """Advantages and returns, completion by completion, from the last token back."""
    kl = numpy_logp(POLICY) - numpy_logp(REFERENCE)  # k1, paid at every token
    advantages, lengths = np.zeros(MASK.shape), MASK.sum(-1)
    for p, g in np.ndindex(P, G):
        ahead, later = 0.0, 0.0
        for t in reversed(range(lengths[p, g])):
            reward = -BETA * kl[p, g, t] + REWARDS[p, g] * (t == lengths[p, g] - 1)
            ahead = reward + GAMMA * later - values[p, g, t] + GAMMA * LAM * ahead
            later = advantages[p, g, t] = values[p, g, t]
            advantages[p, g, t] = ahead
    return advantages, advantages + values


def bodies(kind, policy=POLICY, body=BODY):
    return body if kind == "network" else policy


@pytest.mark.parametrize("kind", ["network", "head"])
def test_a_batch_has_the_critics_values_and_returns(kind):
    batch = prepared(state_with(kind))
    values = numpy_values(bodies(kind), VALUE)
    advantages, returns = numpy_returns(values)
    assert np.abs(values[MASK]).max() > 0.3
    np.testing.assert_allclose(batch.values[MASK], values[MASK], atol=1e-4)
    np.testing.assert_allclose(batch.returns[MASK], returns[MASK], atol=1e-4)
    flat = advantages[MASK]
    want = (flat - flat.mean()) / np.sqrt(flat.var(ddof=1) + 1e-8)
    np.testing.assert_allclose(batch.advantages[MASK], want, atol=1e-3)


def numpy_loss(kind, batch, policy, body, value):
    """PPO's clipped surrogate and value loss, a mean over tokens."""
    A, returns, old = (np.float64(x) for x in (batch.advantages, batch.returns, batch.values))
    ratio = np.exp(numpy_logp(policy) - numpy_logp(POLICY))
    gain = np.minimum(ratio * A, np.clip(ratio, 1 - CLIP, 1 + CLIP) * A)
    values = numpy_values(bodies(kind, policy, body), value)
    near = np.clip(values, old - VALUE_CLIP, old + VALUE_CLIP)
    miss = np.maximum((values - returns) ** 2, (near - returns) ** 2)
    return (0.5 * COEFFICIENT * miss - gain)[MASK].mean()


def change(before, after):
    return jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, before, after)


def stepped(state, batch, critic):
    before = jax.device_get((state.policy.trained, state.critic and state.critic.params))
    state, metrics = update(state, batch, model=MODEL, optimizer=SGD, algorithm=PPO, critic=critic)
    return change(before, (state.policy.trained, state.critic and state.critic.params)), metrics


@pytest.mark.parametrize("kind", ["network", "head"])
def test_loss_and_gradients_are_those_of_full_rows_in_float64(kind):
    batch = prepared(state_with(kind))
    start = {"policy": POLICY, "body": BODY, "value": VALUE * 2}  # some values beyond the clip
    state = state_with(kind, value=VALUE * 2)
    (policy, critic), metrics = stepped(state, batch, critic_of(kind))
    loss = functools.partial(numpy_loss, kind, batch)
    assert float(metrics["loss"]) == pytest.approx(loss(**start), abs=1e-4)
    assert 0 < float(metrics["val/clipfrac"]) < 1
    gradients = {"policy": policy, "body": critic.get("body"), "value": critic["value"]}
    shift = np.random.default_rng(3)
    for name, gradient in gradients.items():
        if gradient is None:
            continue
        direction = jax.tree.map(lambda x: shift.normal(size=x.shape), gradient)
        aim = direction
        if name == "body":  # its head is not the critic's
            aim = {**direction, "head": np.zeros_like(BODY["head"])}
        sides = [
            loss(**{**start, name: jax.tree.map(lambda x, d, e=e: x + e * d, start[name], aim)})
            for e in (1e-6, -1e-6)
        ]
        slope = (sides[0] - sides[1]) / 2e-6
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        found = sum((g * d).sum() for g, d in pairs)
        assert abs(slope) > 1e-3
        assert found == pytest.approx(slope, rel=2e-3, abs=2e-4), name


def test_a_network_of_its_own_leaves_the_policys_gradient_alone():
    batch = prepared(state_with("network"))
    with_critic, _ = stepped(state_with("network"), batch, critic_of("network"))
    without_critic, _ = stepped(state_with("network").replace(critic=None), batch, None)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), with_critic[0], without_critic[0]
    )


def test_a_critic_starts_as_the_policy_and_expects_nothing():
    state = begun("network")
    body = dict(state.critic.params["body"])
    want = {k: v for k, v in POLICY.items() if k != "head"}
    jax.tree.map(np.testing.assert_array_equal, body, want)
    assert not np.asarray(state.critic.params["value"]).any()
    assert set(begun("head").critic.params) == {"value"}


def test_a_critic_whose_gradient_is_not_finite_is_left_as_it_was():
    batch = prepared(state_with("network"))
    batch = batch.replace(returns=jnp.full_like(batch.returns, jnp.nan))
    (policy, critic), metrics = stepped(state_with("network"), batch, critic_of("network"))
    assert not any(x.any() for x in jax.tree.leaves(critic))
    assert any(x.any() for x in jax.tree.leaves(policy))
    assert int(metrics["skipped_in_a_row"]) == 1


def last_state(config, folder):
    ex = build(config)
    updates = config.steps * ex.algorithm.minibatches
    critic = trainer.make_critic(ex.algorithm, config.optimizer, updates)
    optimizer = make_optimizer(config.optimizer, updates)
    like = abstract_state(ex.model, optimizer, ex.mesh, reference=True, critic=critic)
    return checkpoints.restore_latest(folder / "checkpoints", like)[0]


def test_a_critics_learning_rate_and_number_of_updates_are_data():
    ppo, faster = {"algorithm.preset": "ppo"}, {"optimizer.critic_learning_rate": 3e-2}
    one, other = (
        trainer.make_critic(build(config).algorithm, config.optimizer, updates)
        for config, updates in ((tiny_config(**ppo), 8), (tiny_config(**ppo | faster), 9))
    )
    assert jax.tree.structure(one) == jax.tree.structure(other)  # what jit looks a program up by
    assert other.optimizer.numbers.schedule.peak == 3e-2 != one.optimizer.numbers.schedule.peak


@pytest.mark.parametrize("kind", ["network", "head"])
def test_ppo_learns_and_goes_on_from_a_checkpoint_exactly(kind, tmp_path):
    config = tiny_config(
        **{"algorithm.preset": "ppo", "algorithm.critic": kind, "algorithm.minibatches": 2},
        **{"rollout.group": 1, "rollout.prompts": 16, "rollout.max_tokens": 6},
        **{"steps": 24, "checkpoint.every": 12, "rewards": {"tiny:sevens": 1.0}},
        **{"optimizer.learning_rate": 1e-2, "optimizer.critic_learning_rate": 3e-2},
    )
    whole, again = tmp_path / "whole", tmp_path / "again"
    trainer.train(config, whole)
    records = [json.loads(line) for line in (whole / "metrics.jsonl").open()]
    first, last = ([np.mean([r[k] for r in part]) for k in ("reward", "val/explained_variance")]
                   for part in (records[:4], records[-4:]))  # fmt: skip
    assert last[0] > first[0] + 0.2 and last[1] > first[1] + 0.1, (first, last)

    shutil.copytree(whole, again)
    shutil.rmtree(max((again / "checkpoints").iterdir(), key=lambda path: int(path.name)))
    trainer.train(config, again)
    leaves = [jax.tree.leaves(last_state(config, folder)) for folder in (whole, again)]
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(*map(raw, (a, b)))


def raw(x):
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def test_gae_and_a_critic_come_together():
    wrongs = {
        "critic must be network or head with advantage 'gae'": Algorithm(advantage="gae"),
        "critic must be 'none' with advantage 'group_norm'": Algorithm(critic="head"),
    }
    for message, wrong in wrongs.items():
        with pytest.raises(ValueError, match=message):
            validate(wrong, group=2)
    with pytest.raises(UsageError, match=r"critic must be one of .*did you mean 'network'"):
        tiny_config(**{"algorithm.preset": "ppo", "algorithm.critic": "net"})
