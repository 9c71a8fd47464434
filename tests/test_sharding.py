"""Eight virtual devices in one child process: every mesh gives what one device gives."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from grpo_jax.sharding import make_mesh

MESHES = {"1x1x1": (1, 1, 1), "8x1x1": (8, 1, 1), "1x8x1": (1, 8, 1), "2x2x2": (2, 2, 2)}
CHILD = """
import json, sys
import jax, numpy as np, optax
from grpo_jax.algorithms import Algorithm
from grpo_jax.learning.prepare import prepare
from grpo_jax.learning.update import update
from grpo_jax.learning.state import abstract_state, init_state
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.decoder import Decoder
from grpo_jax.learning.optimizer import Optimizer
from grpo_jax.engines.filters import Sampling
from grpo_jax.engines.lockstep import sample
from grpo_jax.sharding import make_mesh, put_batch, using
from grpo_jax.types import Prompts

# 21 tokens are not divisible by 2, nor 3 own tokens by 8; a whole dimension is then kept.
MODEL = Decoder(ModelConfig(vocab_size=21, hidden=16, layers=1, heads=4, kv_heads=2, ff=24))
ALGORITHM = Algorithm(beta=0.1)
SGD = optax.apply_if_finite(optax.inject_hyperparams(optax.sgd)(learning_rate=1.0), 9)
OPTIMIZER = Optimizer(None, lambda _: SGD)
rng = np.random.default_rng(0)
tokens = rng.integers(2, 21, (8, 5)).astype(np.int32)
mask = np.arange(5) >= rng.integers(0, 4, 8)[:, None]
rewards = rng.normal(size=(8, 3)).astype(np.float32)


def run(shape):
    mesh = make_mesh(*shape)
    with using(mesh):
        state = init_state(MODEL, OPTIMIZER, jax.random.key(0), mesh, reference=True)
        like = abstract_state(MODEL, OPTIMIZER, mesh, reference=True)
        asked = jax.tree.map(lambda x, y: x.sharding == y.sharding, state, like)
        assert all(jax.tree.leaves(asked))
        before = jax.device_get(state.policy.trained)
        q = state.policy.trained["layer_0"]["attention"]["q"]["kernel"]
        embedding = state.policy.trained["embed"]["embedding"]
        prompts = put_batch(Prompts(tokens=tokens * mask, mask=mask), mesh)
        keys = put_batch(jax.random.split(jax.random.key(1), (len(tokens), 3)), mesh)
        sampling = Sampling(max_tokens=3, stop=(1,))
        rollouts = sample(MODEL, state.policy.trained, prompts, keys, sampling=sampling)
        results = {
            "q": [list(q.sharding.spec), list(q.addressable_shards[0].data.shape)],
            "embedding": list(embedding.addressable_shards[0].data.shape),
            "prompts": list(prompts.tokens.addressable_shards[0].data.shape),
            "tokens": rollouts.tokens.tolist(),
            "logp": rollouts.logp.tolist(),
        }
        rollouts = put_batch(jax.device_get(rollouts), mesh)
        options = dict(model=MODEL, algorithm=ALGORITHM, temperature=1.0)
        batch = prepare(state, rollouts, put_batch(rewards, mesh), **options)
        options |= dict(optimizer=OPTIMIZER, accumulation=2, mesh=mesh)
        placed = jax.tree.map(lambda x: (x.sharding, x.ndim), state)
        state, metrics = update(state, batch, **options)
        moved = jax.tree.map(lambda x, p: not x.sharding.is_equivalent_to(*p), state, placed)
        results["moved"] = [str(k) for k, x in jax.tree_util.tree_leaves_with_path(moved) if x]
        results["loss"] = float(metrics["loss"])
        # SGD with rate 1: the change is the gradient.
        change = jax.tree.map(np.subtract, before, jax.device_get(state.policy.trained))
        flat = jax.tree_util.tree_leaves_with_path(change)
        results["gradient"] = {jax.tree_util.keystr(k): x.tolist() for k, x in flat}
    return results


print(json.dumps({name: run(shape) for name, shape in json.loads(sys.argv[1]).items()}))
"""


@pytest.fixture(scope="module")
def results():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    command = [sys.executable, "-c", CHILD, json.dumps(MESHES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("mesh", list(MESHES)[1:])
def test_a_mesh_gives_the_tokens_loss_and_gradient_of_one_device(results, mesh):
    one, many = results["1x1x1"], results[mesh]
    assert many["tokens"] == one["tokens"]
    np.testing.assert_allclose(many["logp"], one["logp"], atol=1e-5)
    assert many["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert many["gradient"].keys() == one["gradient"].keys()
    for name, gradient in one["gradient"].items():
        assert np.abs(gradient).max() > 1e-4, name
        np.testing.assert_allclose(many["gradient"][name], gradient, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    ("mesh", "q", "embedding", "prompts"),
    [
        ("1x1x1", [16, 16], [21, 16], [8, 5]),
        ("8x1x1", [16, 16], [21, 16], [1, 5]),
        ("1x8x1", [16, 2], [21, 2], [1, 5]),
        ("2x2x2", [8, 8], [21, 8], [2, 5]),  # 21 does not divide
    ],
)
def test_parameters_and_batches_lie_in_pieces_and_stay_there(results, mesh, q, embedding, prompts):
    mine = results[mesh]
    assert mine["q"] == [["tensor", "fsdp"], q]
    assert (mine["embedding"], mine["prompts"]) == (embedding, prompts)
    assert mine["moved"] == []


def test_a_mesh_larger_than_the_machine_is_refused():
    n = len(jax.devices())
    with pytest.raises(ValueError, match=f"data=1 x fsdp={n + 1} x tensor=1 .* there are {n}$"):
        make_mesh(fsdp=n + 1)
