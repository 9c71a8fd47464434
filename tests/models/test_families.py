"""Every family against Transformers: logits, greedy tokens, loss and gradients, files both ways."""

import dataclasses

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hugging_face import (
    CASES,
    V,
    load,
    our_logits,
    read_json,
    their_gradients,
    their_logits,
)
from reference import make_prompts
from safetensors.numpy import load_file

from grpo_jax.engines.filters import Sampling
from grpo_jax.engines.lockstep import sample
from grpo_jax.learning.optimizer import Optimizer
from grpo_jax.learning.policy import split
from grpo_jax.learning.state import TrainState
from grpo_jax.learning.update import update
from grpo_jax.models.config_json import architecture, family_in, read_config, write_config
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.names import parts
from grpo_jax.models.weights import SINGLE, save_model
from grpo_jax.training.sft import LIKELIHOOD
from grpo_jax.types import Batch

S, T, G = 12, 64, 2
STOP = 2
ROWS = np.random.default_rng(0).integers(0, V, (2, 20)).astype(np.int32)
PROMPTS = make_prompts([5, 12, 1], S, V)
RATE = 2.0**12  # so large a step that the change of the parameters is the gradient, to rounding
SGD = Optimizer(
    None,
    lambda _: optax.apply_if_finite(optax.inject_hyperparams(optax.sgd)(learning_rate=RATE), 9),
)


@pytest.fixture(scope="module", params=list(CASES))
def case(request, hugging_face):
    """(Transformers' model and folder, our config and parameters with listed layers)."""
    theirs = hugging_face(request.param)
    return theirs, *load(theirs.folder)


@pytest.fixture(scope="module")
def scanned(case):
    return load(case[0].folder, scan_layers=True)


def test_logits(case, scanned):
    import torch

    with torch.no_grad():
        want = their_logits(case[0].model, ROWS).numpy()
    assert want.std() > 0.5
    for c, params in (case[1:], scanned):
        got = our_logits(c, params, ROWS)
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_greedy_tokens(case, scanned):
    """Left-padded prompts of unequal length, in groups, until a stop token or for 64 tokens."""
    import torch

    model = case[0].model
    out = model.generate(
        torch.tensor(PROMPTS.tokens, dtype=torch.long),
        attention_mask=torch.tensor(PROMPTS.mask, dtype=torch.long),
        do_sample=False,
        max_new_tokens=T,
        eos_token_id=STOP,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    want = out.sequences[:, S:].numpy()
    n = want.shape[1]
    ended = np.cumsum(want == STOP, -1) - (want == STOP) > 0
    best = torch.stack(out.logits, 1).topk(2).values.numpy()
    assert (best[..., 0] - best[..., 1])[~ended].min() > 1e-4  # no tie for rounding to decide
    assert n == T and len(np.unique(want)) > 8
    sampling = Sampling(max_tokens=T, stop=(STOP,), temperature=0.0)
    c, params = scanned
    key = jax.random.key(0)
    keys = jax.random.split(key, (len(PROMPTS.tokens), G))
    got = sample(Decoder(c), params, PROMPTS, keys, sampling=sampling)
    for g in range(G):
        np.testing.assert_array_equal(got.mask[:, g, :n], ~ended)
        np.testing.assert_array_equal(np.where(ended, 0, got.tokens[:, g, :n]), want * ~ended)


def completions():
    rng = np.random.default_rng(1)
    tokens = rng.integers(1, V, (len(PROMPTS.tokens), G, 7)).astype(np.int32)
    return tokens, np.arange(7) < rng.integers(1, 8, tokens.shape[:2])[..., None]


def their_loss(model, tokens, mask):
    """Mean negative log-likelihood of completions of one batch of padded rows."""
    import torch

    rows = np.concatenate([np.repeat(PROMPTS.tokens, G, 0), tokens.reshape(-1, 7)], 1)
    real = np.concatenate([np.repeat(PROMPTS.mask, G, 0), mask.reshape(-1, 7)], 1)
    logp = their_logits(model, rows, real)[:, S - 1 : -1].log_softmax(-1)
    chosen = logp.gather(-1, torch.tensor(rows[:, S:, None], dtype=torch.long))[..., 0]
    return -chosen[torch.tensor(mask.reshape(-1, 7))].mean()


def test_supervised_loss_and_gradient_then_transformers(case, scanned, tmp_path):
    """And what a smaller step makes of the parameters is what Transformers reads again."""
    theirs, (c, params) = case[0], scanned
    tokens, mask = completions()
    theirs.model.zero_grad()
    loss = their_loss(theirs.model, tokens, mask)
    loss.backward()
    want = their_gradients(theirs.model)
    policy = split(jax.tree.map(jnp.copy, params))
    opt_state = SGD.init(policy.trained)
    state = TrainState(step=jnp.int32(0), policy=policy, opt_state=opt_state, rng=jax.random.key(0))
    before = jax.device_get(policy.trained)
    ones, zeros = np.ones((*mask.shape[:2], 1), np.float32), np.zeros(mask.shape, np.float32)
    batch = Batch(prompts=PROMPTS, tokens=tokens, mask=mask, advantages=ones, logp_rollout=zeros)
    state, metrics = update(state, batch, model=Decoder(c), optimizer=SGD, algorithm=LIKELIHOOD)
    assert float(metrics["loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    change = jax.tree.map(lambda a, b: (a - np.asarray(b)) / RATE, before, state.policy.trained)
    seen = set()
    for path, gradient in flax.traverse_util.flatten_dict(change).items():
        for part in parts(family_in(theirs.folder, c), c, path):
            got = gradient[part.at].T if part.transposed else gradient[part.at]
            error = np.linalg.norm(got - want[part.name])
            assert error <= 1e-4 * np.linalg.norm(want[part.name]) + 1e-9, part.name
            seen.add(part.name)
    assert seen == set(want)
    learnt = jax.tree.map(lambda a, d: a - 0.5 * d, before, change)
    learnt = state.policy.replace(trained=learnt).full
    save_model(tmp_path, c, learnt, source=theirs.folder)
    got = logits_of(tmp_path)
    np.testing.assert_allclose(got, our_logits(c, learnt, ROWS), atol=1e-4)
    assert np.abs(got - our_logits(c, params, ROWS)).max() > 0.01


def logits_of(folder):
    """What Transformers makes of the model of a folder."""
    import torch
    import transformers

    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(folder, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        return their_logits(model.eval(), ROWS).numpy()


def test_transformers_reads_what_is_saved(case, scanned, tmp_path):
    import torch

    theirs, out = case[0], tmp_path / "out"
    save_model(out, *case[1:], theirs.folder)
    save_model(tmp_path / "scanned", *scanned, theirs.folder)
    one, other = (load_file(folder / SINGLE) for folder in (out, tmp_path / "scanned"))
    chex.assert_trees_all_equal(one, other)
    with torch.no_grad():
        want = their_logits(theirs.model, ROWS).numpy()
    np.testing.assert_array_equal(logits_of(out), want)


def test_config_json_both_ways(case):
    theirs, c, _ = case
    written = write_config(c)
    assert read_config(written) == c
    assert written["architectures"] == read_json(theirs.folder)["architectures"]
    assert architecture(dataclasses.replace(c, scan_layers=True, remat="full")) == c
