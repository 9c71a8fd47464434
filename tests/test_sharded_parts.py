"""Eight virtual devices in one child process: latents, experts, adapters, critic, prediction layer
give on a mesh what they give on one device, from weights that were read straight to their place.

The critic is a second network: it learns beside the whole model, and adapters learn without one.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import reference

from grpo_jax.models.weights import save_model

CHILD = """
import dataclasses, json, sys
sys.path += json.loads(sys.argv[2])
from pathlib import Path
import flax, jax, jax.numpy as jnp, numpy as np, optax
from hugging_face import abstract
from reference import SPARSE, make_prompts
from grpo_jax.learning.update import update
from grpo_jax.learning.optimizer import Optimizer
from grpo_jax.learning.state import Critic, abstract_state, init_state
from grpo_jax.models import weights
from grpo_jax.models.config import Lora
from grpo_jax.models.decoder import Decoder
from grpo_jax.training.sft import LIKELIHOOD
from grpo_jax.sharding import make_mesh, put_batch, using
from grpo_jax.types import Batch

folder = Path(sys.argv[1])
sgd = optax.apply_if_finite(optax.inject_hyperparams(optax.sgd)(learning_rate=1.0), 9)
SGD = Optimizer(None, lambda _: sgd)
rng = np.random.default_rng(0)
mask = np.arange(4) < rng.integers(1, 5, (8, 2))[..., None]
tokens = rng.integers(1, SPARSE.vocab_size, mask.shape).astype(np.int32)
prompts = make_prompts([5, 2, 5, 3, 1, 4, 2, 5], 5, SPARSE.vocab_size)
ones, zeros = np.ones((8, 2, 1), np.float32), np.zeros(mask.shape, np.float32)
batch = Batch(
    prompts=prompts,
    tokens=tokens,
    mask=mask,
    advantages=ones,
    logp_rollout=zeros,
    values=zeros,
    returns=zeros + 1,
)
critic = Critic(kind="network", optimizer=SGD)
experts = dataclasses.replace(SPARSE.experts, bias_rate=0.01, balance=0.5)
read, sizes = weights._Reader.read, []
lies_as = lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim)


def counted(self, *args):
    sizes.append(read(self, *args).size)
    return read(self, *args)


weights._Reader.read = counted


def load(mesh, scan):
    # Every leaf lies as asked, has the file's values, and no more was read than a device holds.
    c = dataclasses.replace(SPARSE, layers=2, experts=experts, scan_layers=scan)
    asked = flax.traverse_util.flatten_dict(abstract(c, mesh), sep="/")
    sizes.clear()
    params = weights.load_weights(folder, c, flax.traverse_util.unflatten_dict(asked, sep="/"))
    found = flax.traverse_util.flatten_dict(params, sep="/")
    wrong = [k for k, x in found.items() if not lies_as(x, asked[k])]
    assert not wrong, wrong
    return c, params, max(sizes)


def gathered(shape):
    mesh = make_mesh(*shape)
    out = {}
    with using(mesh):
        scanned = load(mesh, True)[1]
        c, params, out["largest read"] = load(mesh, False)
        out["experts"] = list(params["layer_1"]["ff"]["down"].addressable_shards[0].data.shape)
        out["scanned"] = [np.asarray(x, np.float64).sum() for x in jax.tree.leaves(scanned)]
        out["listed"] = jax.device_get(params["layer_1"]["ff"]["up"]).tolist()
        for name, lora in {"whole": Lora(), "lora": Lora(rank=2)}.items():
            model = Decoder(dataclasses.replace(c, lora=lora))
            start = jax.tree.map(jnp.copy, params)  # for an update gives its state away
            beside = critic if name == "whole" else None
            kept = dict(reference=False, critic=beside)
            state = init_state(model, SGD, jax.random.key(0), mesh, params=start, **kept)
            like = abstract_state(model, SGD, mesh, **kept)
            if beside:  # at 0 its body would learn nothing
                begun = state.critic.params
                begun = begun | {"value": begun["value"] + 0.1}
                state = state.replace(critic=state.critic.replace(params=begun))
            learning = lambda: {
                **state.policy.trained,
                **({"critic": state.critic.params} if beside else {}),
            }
            before = jax.device_get(learning())
            options = dict(model=model, optimizer=SGD, algorithm=LIKELIHOOD, mesh=mesh)
            state, metrics = update(state, put_batch(batch, mesh), critic=beside, **options)
            assert all(jax.tree.leaves(jax.tree.map(lies_as, state, like))), name
            moved = jax.tree.map(np.subtract, before, jax.device_get(learning()))
            flat = flax.traverse_util.flatten_dict(moved, sep="/")
            names = ("loss", "mtp/loss", "moe/balance", "moe/load_max")
            names += ("val/loss",) if beside else ()
            out[name] = {
                "metrics": {k: float(metrics[k]) for k in names},
                "gradient": {k: x.tolist() for k, x in flat.items()},
                "router": [x.tolist() for x in jax.tree.leaves(state.policy.router)],
            }
    return out


print(json.dumps([gathered((1, 1, 1)), gathered((2, 2, 2))]))
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(the results of one device, those of the mesh, the parameters)."""
    folder = tmp_path_factory.mktemp("sparse") / "model"
    c = dataclasses.replace(reference.SPARSE, layers=2)
    params = reference.random_params(c)
    save_model(folder, c, params)
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    paths = json.dumps([str(Path(__file__).parent / "models")])
    command = [sys.executable, "-c", CHILD, str(folder), paths]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return *json.loads(done.stdout), params


def test_weights_are_read_in_pieces_to_their_place(both):
    one, many, params = both
    up = params["layer_1"]["ff"]["up"]
    for gathered in (one, many):
        np.testing.assert_array_equal(np.float32(gathered["listed"]), up)
    np.testing.assert_allclose(many["scanned"], one["scanned"], rtol=1e-12)
    c = reference.SPARSE
    assert one["experts"] == [c.experts.count, c.experts.ff, c.hidden]
    assert many["experts"] == [c.experts.count, c.experts.ff // 2, c.hidden // 2]
    # The widest matrix is the join; the embedding's 23 rows do not divide.
    assert one["largest read"] == 2 * c.hidden * c.hidden
    assert many["largest read"] == 2 * c.hidden * c.hidden // 2


@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_a_mesh_gives_the_loss_and_gradient_of_one_device(both, kind):
    one, many = both[0][kind], both[1][kind]
    for name, value in one["metrics"].items():
        assert many["metrics"][name] == pytest.approx(value, rel=1e-5), name
    assert many["gradient"].keys() == one["gradient"].keys()
    for name, gradient in one["gradient"].items():
        np.testing.assert_allclose(many["gradient"][name], gradient, atol=5e-6, err_msg=name)
    assert any(np.abs(x).max() > 1e-2 for x in one["gradient"].values())
    np.testing.assert_allclose(many["router"], one["router"], atol=1e-6)
    assert len(one["router"]) == (2 if kind == "whole" else 0)  # a sparse layer and the mtp's
