"""The automaton of stop strings against str.find in what the tokenizer itself decodes."""

import numpy as np
import pytest
from chat_tokenizer import trained
from tokenizers import Tokenizer, decoders, models

from grpo_jax.engines.stops import START, cut, stop_table
from grpo_jax.tokenizers import TextTokenizer, char_tokenizer, decode

END = "<|im_end|>"


def byte_level():
    backend = trained()
    backend.add_tokens(["<think>", "</answer>", "日 本"])  # not special: text as they are
    return TextTokenizer(backend, 0, (backend.token_to_id(END),))


def with_vocabulary(words, model, decoder, **options):
    backend = Tokenizer(model({word: i for i, word in enumerate([END, *words])}, **options))
    backend.decoder = decoder
    backend.add_special_tokens([END])
    return TextTokenizer(backend, 0, (0,))


def sentence_piece():
    """As Llama 2: a space before a word, except the first one's; bytes for what is missing."""
    words = ["▁", "▁the", "the", "▁a", "a", ".", "<0x0A>", "<0x20>", "<0x61>", "é", "▁▁"]
    words += [f"<0x{byte:02X}>" for byte in "é日".encode()]
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    parts.append(decoders.Strip(" ", 1, 0))
    options = {"merges": [], "byte_fallback": True}
    return with_vocabulary(
        words,
        lambda vocabulary, **given: models.BPE(vocabulary, **given),
        decoders.Sequence(parts),
        **options,
    )


TOKENIZERS = {
    "byte-level": (byte_level(), ["</answer>", "\n\n", "日本", "é", "at", "本"]),
    "characters": (
        char_tokenizer([*"ab1\n", "</answer>", "<think>"]),
        ["\n\n", "</answer>", "aba"],
    ),
    "sentencepiece": (sentence_piece(), [" the", "\n\n", "é", "日", "a a", "é日"]),
    "metaspace": (
        with_vocabulary(
            ["▁", "▁the", "the", "▁a", "a"], models.WordLevel, decoders.Metaspace(), unk_token=""
        ),
        [" the", "the a", "aa", "  "],
    ),
    "wordpiece": (
        with_vocabulary(
            ["the", "##the", "a", "##a", "."], models.WordPiece, decoders.WordPiece(), unk_token="."
        ),
        ["the a", "aa", ".", " the"],
    ),
    "no decoder": (
        with_vocabulary(["a", "b"], models.WordLevel, None, unk_token=""),
        ["a b", "b b"],
    ),
}


def frequent(tokenizer, strings, size):
    """Ids to draw from: those that the strings are written with, a few others, and the special."""
    ids = [i for i in range(size) if any(c in decode(tokenizer, [0, i]) for c in "".join(strings))]
    return np.array([*ids, *range(min(size, 12))])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_text_ends_at_the_token_that_first_completes_a_string(name):
    tokenizer, strings = TOKENIZERS[name]
    size = tokenizer.vocab_size + 3  # a model may have more ids than its tokenizer
    rng, seen = np.random.default_rng(0), 0
    for some in [[s] for s in strings] + [strings]:
        table = stop_table(tokenizer, some, size)
        ids = frequent(tokenizer, some, size)
        for row in rng.choice(ids, (150, 7)):
            state, length = START, None
            for t, token in enumerate(row):
                state = table[state, token]
                if state == len(table) - 1:
                    length = t + 1
                    break
            texts = [decode(tokenizer, row[:n]) for n in range(1, 8)]
            want = [n for n, text in enumerate(texts, 1) if any(s in text for s in some)]
            assert length == (want[0] if want else None), (some, texts)
            seen += length is not None
    assert seen > 20 * len(strings)


def test_bytes_that_are_no_character_are_no_text():
    """Of a run of byte tokens with a wrong one, the decoder gives nothing for the others either."""
    tokenizer, _ = TOKENIZERS["sentencepiece"]
    newline, first = (tokenizer.backend.token_to_id(t) for t in ("<0x0A>", "<0xE6>"))
    table = stop_table(tokenizer, ["\n\n"], tokenizer.vocab_size)
    for ids, stops in (([newline] * 2, True), ([first, newline, newline], False)):
        state = START
        for token in ids:
            state = table[state, token]
        assert (state == len(table) - 1) == stops == ("\n\n" in decode(tokenizer, ids))


def test_a_tokenizer_whose_text_depends_on_what_follows_is_refused():
    words = ["a</w>", "b</w>", "b"]
    tokenizer = with_vocabulary(words, models.WordLevel, decoders.BPEDecoder("</w>"), unk_token="")
    with pytest.raises(ValueError, match=r"config\.rollout\.stop: .* valid: \(\)"):
        stop_table(tokenizer, ["a b"], 4)


@pytest.mark.parametrize(
    ("name", "string", "why"),
    [
        (
            "characters",
            "<eos>",
            "'<eos>' can never occur: decoding leaves the special token '<eos>'",
        ),
        ("characters", "1<pad>", "decoding leaves the special token '<pad>' out"),
        ("characters", "\u00e9", "'\u00e9' can never occur: no tokens spell it; valid"),
    ],
)
def test_a_string_that_no_text_holds_is_refused(name, string, why):
    tokenizer, strings = TOKENIZERS[name]
    with pytest.raises(ValueError, match=rf"--stop: .*{why}"):
        stop_table(tokenizer, [*strings, string], tokenizer.vocab_size, "--stop")


@pytest.mark.parametrize(
    ("text", "strings", "left"),
    [
        ("a</answer>\n", ["</answer>"], "a</answer>"),
        ("abcd", ["cd", "bc"], "abc"),
        ("abcd", ["x"], "abcd"),
        ("abcd", [], "abcd"),
    ],
)
def test_a_text_is_cut_after_the_first_string_that_is_complete(text, strings, left):
    assert cut(text, strings) == left
