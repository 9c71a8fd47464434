"""Multi-token prediction against DeepSeek-V3's equations 21 to 25 in NumPy float64."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import (
    SPARSE,
    TINY,
    G,
    P,
    S,
    T,
    completion_logits,
    float64,
    head_of,
    make_prompts,
    random_params,
    rms_norm,
    row_block,
    row_hidden,
    stats,
)
from safetensors.numpy import load_file

from grpo_jax.learning.optimizer import Optimizer
from grpo_jax.learning.policy import Policy
from grpo_jax.learning.state import TrainState
from grpo_jax.learning.update import update
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.forward import draft_hidden, forward_group
from grpo_jax.models.weights import SINGLE, save_model
from grpo_jax.training.sft import LIKELIHOOD
from grpo_jax.types import Batch

C = dataclasses.replace(TINY, layers=1, mtp=1, mtp_weight=0.3)
PARAMS = random_params(C)
PROMPTS = make_prompts([8, 1, 3], S, C.vocab_size)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, C.vocab_size, (P, G, T)).astype(np.int32)
LENGTHS = RNG.integers(1, T + 1, (P, G))
MASK = np.arange(T) < LENGTHS[..., None]
RATE = 2.0**12
SGD = Optimizer(
    None,
    lambda _: optax.apply_if_finite(optax.inject_hyperparams(optax.sgd)(learning_rate=RATE), 9),
)


def row_drafts(params, tokens):
    """Logits [L - 1, V] of one row; entry i has seen tokens up to i + 1 and predicts i + 2."""
    p = float64(params)
    m, eps = p["mtp"], C.norm_eps
    hidden = row_hidden(p, C, tokens)[:-1]
    following = p["embed"]["embedding"][tokens[1:]]
    both = [
        rms_norm(following, m["embed_norm"]["scale"], eps),
        rms_norm(hidden, m["hidden_norm"]["scale"], eps),
    ]
    x = row_block(np.concatenate(both, -1) @ m["join"]["kernel"].T, m["layer"], C)
    return rms_norm(x, m["norm"]["scale"], eps) @ head_of(p, C).T


def numpy_drafts(params):
    """Logits [P, G, T, V] that predict each completion token from all but the one before; from
    the second on."""
    out = np.zeros((P, G, T, C.vocab_size))
    for p, g in np.ndindex(P, G):
        prompt = np.asarray(PROMPTS.tokens)[p][np.asarray(PROMPTS.mask)[p]]
        own = TOKENS[p, g, : LENGTHS[p, g]]
        logits = row_drafts(params, np.concatenate([prompt, own]))
        out[p, g, 1 : len(own)] = logits[len(prompt) - 1 : -1]
    return out


def numpy_losses(params):
    """(The mean of -log p over tokens, its twin of the prediction layer)."""
    plain = stats(completion_logits(params, C, PROMPTS, TOKENS, MASK), TOKENS)[0]
    drafts = stats(numpy_drafts(params), TOKENS)[0]
    later = MASK & (np.arange(T) > 0)  # divided by all T tokens still, equation 24
    return -plain[MASK].mean(), -drafts[later].sum() / MASK.sum()


@pytest.fixture(scope="module")
def updates():
    """joint -> (gradient, metrics) of the likelihood's update."""
    zeros = np.zeros(MASK.shape, np.float32)
    batch = Batch(
        prompts=PROMPTS,
        tokens=TOKENS,
        mask=MASK,
        advantages=np.ones((P, G, 1), np.float32),
        logp_rollout=zeros,
    )
    out = {}
    for joint, c in ((True, C), (False, C), (None, dataclasses.replace(C, mtp=0))):
        params = jax.tree.map(jnp.asarray, {k: x for k, x in PARAMS.items() if c.mtp or k != "mtp"})
        state = TrainState(
            step=jnp.int32(0),
            policy=Policy(trained=params),
            opt_state=SGD.init(params),
            rng=jax.random.key(0),
        )
        before = jax.device_get(params)
        options = {"model": Decoder(c), "optimizer": SGD, "algorithm": LIKELIHOOD}
        state, metrics = update(state, batch, joint_mtp=bool(joint), **options)
        change = jax.tree.map(lambda a, b: (a - np.asarray(b)) / RATE, before, state.policy.trained)
        out[joint] = change, metrics
    return out


def test_drafts_of_a_group_are_those_of_full_rows_in_float64():
    model = Decoder(C)

    @jax.jit
    def drafts(params):
        forwarded = forward_group(model, params, PROMPTS, TOKENS)
        hidden, routing = draft_hidden(model, params, PROMPTS, forwarded, TOKENS, MASK)
        assert routing is None
        return model.apply({"params": params}, hidden, method=Decoder.logits)

    later = MASK[:, :, 1:]
    got, want = drafts(PARAMS)[:, :, :-1][later], numpy_drafts(PARAMS)[:, :, 1:][later]
    assert want.std() > 0.5
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_the_loss_is_the_formula(updates):
    plain, drafts = numpy_losses(PARAMS)
    for joint in (True, False):
        metrics = updates[joint][1]
        assert float(metrics["mtp/loss"]) == pytest.approx(drafts, rel=1e-5)
        assert float(metrics["loss"]) == pytest.approx(plain + 0.3 * drafts, rel=1e-5)
    assert "mtp/loss" not in updates[None][1]


def test_the_joint_gradient_is_numpys_difference_quotient(updates):
    gradient, shift = updates[True][0], np.random.default_rng(3)
    for name in gradient:
        direction = jax.tree.map(lambda x: shift.normal(size=x.shape), gradient[name])
        ends = []
        for e in (1e-6, -1e-6):
            part = jax.tree.map(lambda x, d, e=e: x + e * d, float64(PARAMS[name]), direction)
            plain, drafts = numpy_losses(PARAMS | {name: part})
            ends.append(plain + 0.3 * drafts)
        pairs = zip(jax.tree.leaves(gradient[name]), jax.tree.leaves(direction), strict=True)
        found = sum((g * d).sum() for g, d in pairs)
        assert found == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-3, abs=1e-5), name


def test_unless_joint_the_decoder_learns_as_if_the_layer_were_not_there(updates):
    alone, joint, without = (updates[k][0] for k in (False, True, None))
    close = partial(np.testing.assert_allclose, atol=1e-7, rtol=1e-4)
    jax.tree.map(close, {k: x for k, x in alone.items() if k != "mtp"}, without)
    jax.tree.map(close, alone["mtp"], joint["mtp"])
    assert all(np.abs(x).max() > 1e-5 for x in jax.tree.leaves(alone["mtp"]))
    assert np.abs(joint["head"] - without["head"]).max() > 1e-3


def test_tensors_have_deepseeks_names(tmp_path):
    params = random_params(SPARSE)
    save_model(tmp_path / "model", SPARSE, params)
    tensors = load_file(tmp_path / "model" / SINGLE)
    at = f"model.layers.{SPARSE.layers}."
    found = {k.removeprefix(at): x for k, x in tensors.items() if k.startswith(at)}
    mtp = params["mtp"]
    want = {
        "enorm.weight": mtp["embed_norm"]["scale"],
        "hnorm.weight": mtp["hidden_norm"]["scale"],
        "eh_proj.weight": mtp["join"]["kernel"],
        "shared_head.norm.weight": mtp["norm"]["scale"],
        "shared_head.head.weight": params["head"],
        "embed_tokens.weight": params["embed"]["embedding"],
        "self_attn.kv_a_proj_with_mqa.weight": mtp["layer"]["attention"]["kv_a"]["kernel"],
        "mlp.gate.e_score_correction_bias": mtp["layer"]["ff"]["router_bias"],
        "mlp.experts.3.down_proj.weight": mtp["layer"]["ff"]["down"][3].T,
        "mlp.shared_experts.up_proj.weight": mtp["layer"]["ff"]["shared"]["up"]["kernel"],
    }
    for name, x in want.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)
    layer = {k.removeprefix("model.layers.2.") for k in tensors if k.startswith("model.layers.2.")}
    assert found.keys() == layer | want.keys()
