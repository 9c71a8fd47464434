"""Every kind of tokenizer that lacks a character says so, and none that only changes text does."""

import re

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from grpo_jax.tokenizers import TextTokenizer, char_tokenizer, encode

AB = {"a": 0, "b": 1, "ab": 2}
BYTES = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
FALLBACK = {f"<0x{i:02X}>": i for i in range(256)}
BYTEWISE = pre_tokenizers.ByteLevel(add_prefix_space=False)


def bpe(vocabulary, *merges, **options):
    return models.BPE(vocabulary, list(merges), **options)


# A tokenizer of "a" and "b" that has nothing for "é": the model, and its pre-tokeniser.
LACKING = {
    "bpe, which drops": (bpe(AB, ("a", "b")), None),
    "bpe by prefixes": (
        bpe({"a": 0, "##b": 1, "##a": 2, "b": 3, "ab": 4}, continuing_subword_prefix="##"),
        None,
    ),
    "bpe by suffixes": (
        bpe({"a": 0, "b": 1, "a</w>": 2, "b</w>": 3}, end_of_word_suffix="</w>"),
        None,
    ),
    "bpe of words": (bpe({**AB, "Ġ": 3}, ("a", "b")), BYTEWISE),
    "bpe of half its bytes": (bpe({**AB, "Ġ": 3, "Ã": 4}), BYTEWISE),
    "bpe with an unknown token": (bpe({**AB, "<unk>": 3}, unk_token="<unk>"), None),
    "wordpiece": (models.WordPiece({"a": 0, "##b": 1, "[UNK]": 2, "b": 3, "##a": 4}), None),
    "wordpiece without": (
        models.WordPiece({"a": 0, "##b": 1, "b": 2, "##a": 3}, unk_token="?"),
        None,
    ),
    "unigram": (models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -1.0)], 0), None),
    "unigram without": (models.Unigram([("a", -1.0), ("b", -1.0)], None), None),
}
UNIGRAM_BYTES = [("<unk>", 0.0), *((byte, -1.0) for byte in FALLBACK)]
WHOLE = {
    "all bytes": (bpe(BYTES), BYTEWISE),
    "bytes after the rest": (bpe(FALLBACK, byte_fallback=True), None),
    "unigram, bytes after the rest": (models.Unigram(UNIGRAM_BYTES, 0, True), None),
}


def made(model, pre_tokenizer, normalizer=None):
    backend = Tokenizer(model)
    for name, part in (("pre_tokenizer", pre_tokenizer), ("normalizer", normalizer)):
        if part is not None:
            setattr(backend, name, part)
    return TextTokenizer(backend, pad=0, stop=(0,))


@pytest.mark.parametrize("name", LACKING)
def test_a_character_without_a_token_is_named(name):
    tokenizer = made(*LACKING[name])
    assert encode(tokenizer, "abba") and encode(tokenizer, "") == []
    for text, position in (("é", 0), ("abéba", 2), ("abbaaabé", 7), ("éa", 0)):
        message = f"character 'é' at position {position} is outside the tokenizer's vocabulary"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            encode(tokenizer, text)


@pytest.mark.parametrize("name", WHOLE)
def test_bytes_have_every_character(name):
    assert len(encode(made(*WHOLE[name]), "é\0🙂\U0010fffe")) == 11


def test_what_a_tokenizer_changes_or_leaves_out_itself_is_not_lost():
    strip = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    spaced = {**AB, "▁": 3, "▁a": 4}
    for model, pre_tokenizer, normalizer, text in (
        (bpe(AB), None, strip, "ÁB\u0301"),
        (bpe(AB), pre_tokenizers.Whitespace(), None, "a  b\n a"),
        (bpe(spaced, ("▁", "a")), pre_tokenizers.Metaspace(), None, "a b"),
        (bpe(spaced), None, normalizers.Replace(" ", "▁"), "a b"),
        (bpe(AB), pre_tokenizers.Split("-", "removed"), None, "a-b"),
        (bpe(AB), None, normalizers.BertNormalizer(), "a\0b"),
    ):
        assert encode(made(model, pre_tokenizer, normalizer), text)


def test_a_token_that_was_added_whole_needs_no_characters():
    tokenizer = made(bpe(AB), None)
    tokenizer.backend.add_special_tokens([AddedToken("<|end|>", special=True), "<|e"])
    assert encode(tokenizer, "ab<|end|>b<|e") == [0, 1, 3, 1, 4]
    with pytest.raises(ValueError, match="character '<' at position 9"):
        encode(tokenizer, "ab<|end|><x")


@pytest.mark.parametrize("name", [*LACKING, *WHOLE, "char"])
def test_half_a_character_is_refused_by_every_tokenizer(name):
    tokenizer = char_tokenizer("ab") if name == "char" else made(*(LACKING | WHOLE)[name])
    with pytest.raises(ValueError, match=r"'\\udc80' at position 1 is half of a character"):
        encode(tokenizer, "a\udc80b")
