"""Speculative decoding changes the time and nothing else, token for token."""

import dataclasses
import itertools
from collections import Counter, defaultdict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import TINY, make_prompts, random_params, softmax, stack_layers, stats
from test_filters import brute_force

from grpo_jax.engines import make_engine
from grpo_jax.engines.filters import Sampling
from grpo_jax.engines.speculative import speculation_metrics
from grpo_jax.engines.stops import cut, stop_table
from grpo_jax.models.config import Latent
from grpo_jax.models.decoder import Decoder
from grpo_jax.models.forward import draft_hidden, forward_group
from grpo_jax.tokenizers import char_tokenizer, decode

V = 4
DRAFTS = dataclasses.replace(TINY, vocab_size=V, layers=1, mtp=1)
LATENT = dataclasses.replace(DRAFTS, latent=Latent(8, 6, 4, 2, 5))
MODELS = {
    "grouped": DRAFTS,
    "windows, scanned": dataclasses.replace(DRAFTS, layers=2, windows=(3, 2), scan_layers=True),
    "latent": LATENT,
}
GREEDY = Sampling(max_tokens=13, stop=(2, 5, 7), temperature=0.0)
PROMPTS = make_prompts([5, 1, 3, 4, 2, 5, 5, 4], 5, TINY.vocab_size, seed=4)


def params(config, alike=False):
    """Random parameters; `alike`, of a drafting layer that is often right: a token's embedding
    decides most of what follows it, in the decoder and in the layer.
    """
    tree = random_params(dataclasses.replace(config, scan_layers=False), seed=6 if alike else 2)
    if alike:
        layers = [tree[f"layer_{i}"] for i in range(config.layers)]
        for layer in (*layers, tree["mtp"]["layer"]):
            layer["attention"]["o"]["kernel"] *= 0.15
            layer["ff"]["down"]["kernel"] *= 0.15
        join = tree["mtp"]["join"]["kernel"]
        join *= 0.1
        join[:, : config.hidden] += np.eye(config.hidden)
    return stack_layers(tree) if config.scan_layers else tree


def run(engine, config, sampling, prompts=PROMPTS, group=1, alike=False, stops=None):
    keys = jax.random.split(jax.random.key(0), (len(prompts.tokens), group))
    out = make_engine(engine, Decoder(config), stops)
    return jax.tree.map(np.asarray, out.generate(params(config, alike), prompts, keys, sampling))


plain_run, fast_run = partial(run, "lockstep"), partial(run, "speculative")


@partial(jax.jit, static_argnums=0)
def teacher_forced(config, params, prompts, tokens):
    """Logits of the learner, and of its drafting layer one token on: f32[2, P, G, T, V]."""
    model = Decoder(config)
    forwarded = forward_group(model, params, prompts, tokens)
    drafts, _ = draft_hidden(model, params, prompts, forwarded, tokens, tokens >= 0)
    hidden = jnp.stack([forwarded.hidden, drafts])
    return model.apply({"params": params}, hidden, method=Decoder.logits)


@pytest.fixture(scope="module", params=MODELS)
def greedy(request):
    config = dataclasses.replace(MODELS[request.param], vocab_size=TINY.vocab_size)
    return config, *(way(config, GREEDY, alike=True) for way in (plain_run, fast_run))


def test_greedy_is_plain_decoding_token_for_token(greedy):
    _, plain, fast = greedy
    for name in ("tokens", "mask", "finished"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(plain, name), name)
    for name in ("logp", "entropy"):
        np.testing.assert_allclose(getattr(fast, name), getattr(plain, name), atol=1e-5)
    assert fast.finished.any() and not fast.finished.all()


def test_a_draft_after_a_stop_string_is_cut():
    """The strings are the two tokens of a draft that was accepted, and of one that was not."""
    config = dataclasses.replace(DRAFTS, vocab_size=TINY.vocab_size)
    plain = plain_run(config, GREEDY, alike=True)
    letters = char_tokenizer([chr(0x61 + i) for i in range(TINY.vocab_size - 2)])
    whole = [
        decode(letters, row[0][kept[0]]) for row, kept in zip(plain.tokens, plain.mask, strict=True)
    ]
    strings = [text[i : i + 2] for text in whole for i in (2, 5) if i + 2 < len(text)]
    table = stop_table(letters, strings, TINY.vocab_size)
    fast = fast_run(config, GREEDY, alike=True, stops=table)
    slow = plain_run(config, GREEDY, alike=True, stops=table)
    for name in ("tokens", "mask", "finished"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(slow, name), name)
    lengths = fast.mask.sum(-1)[:, 0]
    for text, length, row in zip(whole, lengths, fast.tokens, strict=True):
        assert decode(letters, row[0, :length]) == cut(text, strings)
    assert {n % 2 for n in lengths[lengths < plain.mask.sum(-1)[:, 0]]} == {0, 1}


def test_greedy_drafts_are_those_of_the_training_pass(greedy):
    """A walk over the finished completions; each draft sees only accepted tokens."""
    config, _, out = greedy
    weights = params(config, alike=True)
    _, drafts = np.asarray(teacher_forced(config, weights, PROMPTS, out.tokens))
    for p in range(len(out.tokens)):
        tokens, drafted, accepted = out.tokens[p, 0][out.mask[p, 0]], 0, 0
        n = 1
        while n < len(tokens):
            hit = drafts[p, 0, n - 1].argmax() == tokens[n]
            drafted, accepted, n = drafted + 1, accepted + hit, n + 1 + hit
        assert (out.extras["drafted"][p, 0], out.extras["accepted"][p, 0]) == (drafted, accepted)
    assert 0 < out.extras["accepted"].sum() < out.extras["drafted"].sum()


T, STOP = 4, 3
EVERY = np.array(list(itertools.product(range(V), repeat=T)), np.int32)[None]  # [1, V^T, T]
PLAIN = Sampling(max_tokens=T, stop=(STOP,), temperature=1.4)
FILTERED = dataclasses.replace(PLAIN, temperature=1.9, top_k=3, top_p=0.9)
CASES = {
    "plain": (DRAFTS, PLAIN),
    "filtered": (DRAFTS, FILTERED),
    "latent, filtered": (
        dataclasses.replace(LATENT, layers=2, scan_layers=True),
        dataclasses.replace(PLAIN, min_p=0.3),
    ),
}


def ended(tokens):
    return tokens[-1] == STOP or len(tokens) == T


def tables(logits, sampling):
    """{tokens so far: what may be drawn next, f64[V]} of logits [V^T, T, V] of all completions."""
    found, s = {}, sampling
    for tokens, rows in zip(EVERY[0].tolist(), logits, strict=True):
        for t, row in enumerate(rows / np.float32(s.temperature)):
            kept = np.isin(np.arange(V), list(brute_force(row, s.top_k, s.top_p, s.min_p)))
            found[tuple(tokens[:t])] = softmax(np.where(kept, row.astype(np.float64), -np.inf))
    return found


def plain_sampling(p):
    """{completion: probability}."""
    found, open_ = {}, {(): 1.0}
    while open_:
        tokens, chance = open_.popitem()
        for token in range(V):
            longer = (*tokens, token)
            (found if ended(longer) else open_)[longer] = chance * p[tokens][token]
    return found


def speculative_sampling(p, q):
    """{(completion, drafted, accepted): probability}; q[tokens] drafts the one after the next."""
    found = defaultdict(float)

    def go(tokens, chance, drafted, accepted):
        if chance < 1e-15:
            return
        if ended(tokens):
            found[tokens, drafted, accepted] += chance
            return
        P, Q = p[tokens], q[tokens]
        for i in np.flatnonzero(P):
            longer, both = (*tokens, int(i)), 0.0
            if Q[i]:  # that two maxima over the same Gumbel noise are the same
                both = 1 / np.maximum(P / P[i], Q / Q[i]).sum()
            go(longer, chance * (P[i] - both), drafted + 1, accepted)
            if ended(longer):
                go(longer, chance * both, drafted + 1, accepted + 1)
                continue
            for token in range(V):
                share = chance * both * p[longer][token]
                go((*longer, token), share, drafted + 1, accepted + 1)

    for token in range(V):
        go((token,), p[()][token], 0, 0)
    return found


def chi_square(counts, expected):
    """Pearson's statistic and its degrees of freedom; outcomes expected below 5 times are one."""
    pairs = [(counts[k], e) for k, e in expected.items() if e >= 5]
    pairs.append((sum(counts.values()) - sum(c for c, _ in pairs), 0))
    small = sum(expected.values()) - sum(e for _, e in pairs)
    pairs[-1] = (pairs[-1][0], max(small, 1.0))
    return sum((c - e) ** 2 / e for c, e in pairs), len(pairs) - 1


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A model, how it is sampled, the learner's logits of all completions, and many samples."""
    config, sampling = CASES[request.param]
    prompts = make_prompts([3], 5, V, seed=6)
    logits = np.asarray(teacher_forced(config, params(config), prompts, EVERY))[:, 0]
    drawn, plain = (way(config, sampling, prompts, group=1 << 13) for way in (fast_run, plain_run))
    return sampling, logits, drawn, plain


def test_samples_are_distributed_as_plain_sampling_says(case):
    sampling, logits, out, _ = case
    p = tables(logits[0], sampling)
    q = tables(np.roll(logits[1], 1, axis=1), sampling)  # its row t has seen token t already
    plain, outcomes = plain_sampling(p), speculative_sampling(p, q)
    total = defaultdict(float)
    for (tokens, *_), chance in outcomes.items():
        total[tokens] += chance
    for tokens, chance in plain.items():
        assert total[tokens] == pytest.approx(chance, abs=1e-12)
    rows = out.mask.shape[1]
    drawn = zip(
        out.tokens[0], out.mask[0], out.extras["drafted"][0], out.extras["accepted"][0], strict=True
    )
    counts = Counter((tuple(t[m].tolist()), int(d), int(a)) for t, m, d, a in drawn)
    assert set(counts) <= set(outcomes)
    statistic, df = chi_square(counts, {k: rows * x for k, x in outcomes.items()})
    assert df > 20 and statistic < df + 4 * np.sqrt(2 * df)
    assert 0.2 < out.extras["accepted"].sum() / out.extras["drafted"].sum() < 0.9


def test_samples_are_those_of_plain_decoding_token_for_token(case):
    _, _, out, plain = case
    same = (out.tokens == plain.tokens).all(-1)
    assert same.mean() > 0.999  # where rounding leaves two tokens alike, either may be drawn
    np.testing.assert_array_equal(out.mask[same], plain.mask[same])
    np.testing.assert_allclose(out.logp[same], plain.logp[same], atol=1e-5)


def test_log_probs_are_the_learners(case):
    sampling, logits, out, _ = case
    index = out.tokens[0] @ V ** np.arange(T)[::-1]  # padding is 0, and no token sees it
    want = np.stack(stats(logits[0][index].astype(np.float64), out.tokens[0], sampling.temperature))
    got = np.stack([out.logp, out.entropy])[:, 0]
    np.testing.assert_allclose(got[:, out.mask[0]], want[:, out.mask[0]], atol=1e-4)


def test_a_completion_ends_with_its_first_stop_token_or_at_the_limit(case):
    _, _, out, _ = case
    stops = (out.tokens == STOP) & out.mask
    lengths = np.where(stops.any(-1), stops.argmax(-1) + 1, T)
    np.testing.assert_array_equal(out.mask, np.arange(T) < lengths[..., None])
    np.testing.assert_array_equal(out.finished, stops.any(-1))
    for values in (out.tokens, out.logp, out.entropy):
        assert np.all(values[~out.mask] == 0)
    assert len(np.unique(lengths)) == T


def test_short_limits_and_prompts_of_one_token():
    prompts = make_prompts([1, 1], 1, V)
    one, two = (dataclasses.replace(GREEDY, max_tokens=n, stop=()) for n in (1, 2))
    want = plain_run(DRAFTS, two, prompts).tokens
    for sampling in (one, two):
        out, n = fast_run(DRAFTS, sampling, prompts), sampling.max_tokens
        np.testing.assert_array_equal(out.tokens, want[..., :n])
        assert np.all(out.extras["drafted"] == n - 1) and out.mask.all()


def test_metrics_count_passes_of_the_decoder(greedy):
    _, plain, out = greedy
    assert plain.extras == {}
    got = speculation_metrics(out)
    assert (
        got["speculative/acceptance_rate"]
        == out.extras["accepted"].sum() / out.extras["drafted"].sum()
    )
    gained = (out.mask.sum(-1) - 1).sum() / out.extras["drafted"].sum()
    assert got["speculative/tokens_per_step"] == gained and 1 < gained < 2


def test_a_model_that_cannot_draft_is_refused():
    config = dataclasses.replace(DRAFTS, mtp=0)
    with pytest.raises(ValueError, match=r"rollout.engine='speculative' .*model.mtp=1, not 0"):
        fast_run(config, GREEDY)
