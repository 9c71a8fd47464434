import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from reference import (
    SAMPLING,
    TINY,
    G,
    P,
    S,
    T,
    completion_logits,
    make_prompts,
    random_params,
    row_logits,
    softmax,
    stats,
)

from grpo_jax.engines.base import completion_keys
from grpo_jax.engines.filters import filter_logits
from grpo_jax.engines.lockstep import sample
from grpo_jax.engines.stops import stop_table
from grpo_jax.models.decoder import Decoder, init_cache
from grpo_jax.models.logps import completion_logps
from grpo_jax.tokenizers import bucket, char_tokenizer, decode, encode_prompts
from grpo_jax.types import Prompts

MODEL, PARAMS, V = Decoder(TINY), random_params(TINY), TINY.vocab_size
FIELDS = ("tokens", "mask", "logp", "entropy", "finished")
PROMPTS = make_prompts([8, 3, 8], S, V, seed=1)
PROMPTS.tokens[2] = PROMPTS.tokens[0]  # one problem twice
FILTERED = dataclasses.replace(SAMPLING, temperature=1.3, top_k=6, top_p=0.9, min_p=0.02)
GREEDY = dataclasses.replace(SAMPLING, temperature=0.0)


def run(sampling=SAMPLING, prompts=PROMPTS, seed=0, group=G, **stops):
    keys = jax.random.split(jax.random.key(seed), (len(prompts.tokens), group))
    out = sample(MODEL, PARAMS, prompts, keys, sampling=sampling, **stops)
    return jax.tree.map(np.asarray, out)


def same(a, b, fields=FIELDS):
    return [np.array_equal(getattr(a, name), getattr(b, name)) for name in fields]


@pytest.fixture(scope="module")
def out():
    return run()


@pytest.fixture(
    scope="module", params=[SAMPLING, FILTERED, GREEDY], ids=["plain", "filtered", "greedy"]
)
def case(request):
    return request.param, run(request.param)


@pytest.fixture(scope="module")
def score():
    return partial(jax.jit(completion_logps, static_argnums=0), MODEL, PARAMS)


def test_log_probs_are_the_learners_at_the_same_temperature(case, score):
    sampling, out = case
    temperature = sampling.temperature or 1.0
    logits = completion_logits(PARAMS, TINY, PROMPTS, out.tokens, out.mask)
    got = np.stack([out.logp, out.entropy])[:, out.mask]
    learner = np.stack(score(PROMPTS, out.tokens, np.float32(temperature)))[:, out.mask]
    reference = np.stack(stats(logits, out.tokens, temperature))[:, out.mask]
    np.testing.assert_allclose(got, learner, atol=1e-4)
    np.testing.assert_allclose(got, reference, atol=1e-4)


def test_a_completion_ends_with_its_first_stop_token_or_at_the_limit(case):
    _, out = case
    for p, g in np.ndindex(P, G):
        stops = np.flatnonzero(np.isin(out.tokens[p, g], SAMPLING.stop) & out.mask[p, g])
        length = stops[0] + 1 if len(stops) else T
        np.testing.assert_array_equal(out.mask[p, g], np.arange(T) < length)
        assert out.finished[p, g] == bool(len(stops))
    for values in (out.tokens, out.logp, out.entropy):
        assert np.all(values[~out.mask] == 0)


def test_several_stop_tokens_are_used_and_some_completions_run_into_the_limit(out):
    last = np.take_along_axis(out.tokens, out.mask.sum(-1, keepdims=True) - 1, -1)[..., 0]
    assert len(set(last[out.finished].tolist())) > 1 and not out.finished.all()


def test_a_completion_ends_with_the_token_that_completes_a_stop_string(out):
    """Token for token what is sampled without stop strings, up to there; no neighbour matters."""
    tokenizer = char_tokenizer([*"abcdefghijklmnopqr", "st", "uv", "xy"])
    strings = ["ab", "s", "cd", "q", "vx"]
    got = run(stops=stop_table(tokenizer, strings, V))
    cut = 0
    for p, g in np.ndindex(P, G):
        row = out.tokens[p, g][out.mask[p, g]]
        prefixes = [decode(tokenizer, row[: n + 1]) for n in range(len(row))]
        ends = [n for n, text in enumerate(prefixes, 1) if any(s in text for s in strings)]
        length = ends[0] if ends else len(row)
        np.testing.assert_array_equal(got.mask[p, g], np.arange(T) < length)
        np.testing.assert_array_equal(got.tokens[p, g, :length], row[:length])
        np.testing.assert_array_equal(got.logp[p, g, :length], out.logp[p, g, :length])
        assert got.finished[p, g] == (bool(ends) or out.finished[p, g])
        cut += length < len(row)
    assert cut > 2


def test_greedy_is_an_argmax_loop():
    out = run(GREEDY)
    for p in range(P):
        row = PROMPTS.tokens[p][PROMPTS.mask[p]].tolist()
        own = []
        while len(own) < T and not (own and own[-1] in GREEDY.stop):
            own.append(int(row_logits(PARAMS, TINY, row + own)[-1].argmax()))
        for g in range(G):
            assert out.tokens[p, g][out.mask[p, g]].tolist() == own


def test_drawn_tokens_pass_the_filters():
    out = run(FILTERED)
    logits = completion_logits(PARAMS, TINY, PROMPTS, out.tokens, out.mask)
    f = FILTERED
    kept = np.asarray(filter_logits(logits / f.temperature, f.top_k, f.top_p, f.min_p))
    assert np.isfinite(np.take_along_axis(kept, out.tokens[..., None], -1))[out.mask].all()


def test_the_key_alone_decides(out):
    assert all(same(run(seed=0), out))
    assert not any(same(run(seed=1), out, ("tokens", "logp", "entropy")))


def test_a_completion_is_the_same_whatever_is_sampled_beside_it(out):
    """By itself, without its batch and its group; its noise is of its key and position only."""
    keys = jax.random.split(jax.random.key(0), (P, G))
    one = jax.tree.map(lambda x: x[1:2], PROMPTS)
    found = sample(MODEL, PARAMS, one, keys[1:2, 2:3], sampling=SAMPLING)
    np.testing.assert_array_equal(found.tokens[0, 0], out.tokens[1, 2])
    np.testing.assert_allclose(found.logp[0, 0], out.logp[1, 2], atol=1e-5)


def test_keys_are_of_run_step_prompt_and_completion():
    def keys(seed=0, step=3, places=(4, 5, 6), group=2):
        made = completion_keys(jax.random.key(seed), step, np.array(places), group)
        return jax.random.key_data(made).reshape(len(places), group, -1).tolist()

    whole = keys()
    assert keys(places=(5,), group=4)[0][:2] == whole[1]  # of neither batch nor group
    every = [*whole, *keys(seed=1), *keys(step=4), *keys(places=(7, 8, 9))]
    flat = [tuple(key) for group in every for key in group]
    assert len(set(flat)) == len(flat) == 24


def test_every_row_draws_its_own_noise(out):
    first, again = out.tokens[0], out.tokens[2]  # of the same prompt
    assert len(np.unique(first, axis=0)) == G == len(np.unique(again, axis=0))
    assert np.all(np.any(first != again, axis=-1))


def test_a_larger_limit_changes_nothing_before_the_smaller_one(out):
    """With the larger limit every completion stops, and so does the loop."""
    longer = run(dataclasses.replace(SAMPLING, max_tokens=96))
    assert longer.finished.all() and not longer.mask.all(-1).any()
    np.testing.assert_array_equal(longer.mask[..., :T], out.mask)
    np.testing.assert_array_equal(longer.tokens[..., :T], out.tokens)
    np.testing.assert_allclose(longer.logp[..., :T], out.logp, atol=1e-5)
    assert np.array_equal(out.finished, ~longer.mask[..., T:].any(-1))


def test_prompt_lengths_inside_a_bucket_share_one_program(out):
    tokenizer = char_tokenizer("0123456789+=")

    def padded(texts):
        longest = max(len(text) for text in texts)
        problems = [SimpleNamespace(prompt=text) for text in texts]
        tokens, mask = encode_prompts(tokenizer, problems, bucket(longest, S))
        return Prompts(tokens=tokens, mask=mask)

    before = sample._cache_size()
    short = ["1+2=", "3=", "4+5="]
    results = [
        run(prompts=padded(texts)) for texts in (short, ["1", "22", "333"], ["1+2345=="] * P)
    ]
    assert sample._cache_size() == before  # S is the width that `out` was compiled for
    wide = jax.tree.map(lambda x: np.pad(x, ((0, 0), (S, 0))), padded(short))
    wider = run(prompts=wide)
    assert sample._cache_size() == before + 1
    np.testing.assert_array_equal(wider.tokens, results[0].tokens)  # more padding, same rollouts
    np.testing.assert_allclose(wider.logp, results[0].logp, atol=1e-5)


def test_first_tokens_follow_the_policy():
    """Pearson's chi-square at a fixed seed; its mean is df, its standard deviation sqrt(2 df)."""
    group, temperature = 4096, 1.7
    sampling = dataclasses.replace(SAMPLING, max_tokens=1, temperature=temperature)
    prompts = make_prompts([5], S, V, seed=2)
    out = run(sampling, prompts, group=group)
    logits = row_logits(PARAMS, TINY, prompts.tokens[0, -5:])[-1]
    expected = group * softmax(logits / temperature)
    counts = np.bincount(out.tokens.ravel(), minlength=V)
    assert expected.min() > 5 and expected.max() > 5 * expected.min()
    df = V - 1
    assert np.sum((counts - expected) ** 2 / expected) < df + 4 * np.sqrt(2 * df)


def test_a_stack_of_layers_holds_its_cache_once():
    """The cache is long beside everything else, so that a copy of it would show."""
    c = dataclasses.replace(TINY, layers=4, scan_layers=True)
    sampling = dataclasses.replace(SAMPLING, max_tokens=2000)
    shape = jax.eval_shape(lambda: random_params(c))
    lowered = sample.lower(
        Decoder(c), shape, PROMPTS, jax.random.split(jax.random.key(0), (P, G)), sampling=sampling
    )
    cache = jax.eval_shape(lambda: init_cache(c, len(PROMPTS.tokens), G, 2000))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    assert size < lowered.compile().memory_analysis().temp_size_in_bytes < 1.7 * size
