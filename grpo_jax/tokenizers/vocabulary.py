"""Whether a tokenizer has a token for every character of a text, whatever its kind.

Libraries replace a character that they lack by an unknown token, raise, or drop it without a word.
What normalisers change, and what pre-tokenisers leave out, is intended and no error.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

from tokenizers import Encoding, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

NO_CHARACTER = "\U0010fffe"  # which no vocabulary has
SPACE = "▁"  # which pre-tokenisers put where there is none


def known_ids(backend: Tokenizer, text: str, add_special_tokens: bool = False) -> list[int] | None:
    """The token ids of `text`, or None where a character of it is outside the vocabulary."""
    try:
        encoding = backend.encode(text, add_special_tokens=add_special_tokens)
    except Exception:  # the library raises bare Exception for a word it lacks
        return None
    return _whole(backend, text, encoding)


def known_ids_of(
    backend: Tokenizer, texts: Sequence[str], add_special_tokens: bool = False
) -> list[list[int] | None]:
    """`known_ids` of each text; the library's threads share the work."""
    try:
        encodings = backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)
    except Exception:  # of one of them, and it does not say which
        return [known_ids(backend, text, add_special_tokens) for text in texts]
    return [_whole(backend, *pair) for pair in zip(texts, encodings, strict=True)]


def _whole(backend: Tokenizer, text: str, encoding: Encoding) -> list[int] | None:
    """The ids of an encoding, or None where it lacks a character of the text."""
    ids, unknown = encoding.ids, _unknown_id(backend)
    if unknown in ids:  # but a template's own special token may be that one
        added = encoding.special_tokens_mask
        if any(i == unknown and not special for i, special in zip(ids, added, strict=True)):
            return None
    return None if _may_drop(backend) and _drops(backend, text) else ids


def is_half(character: str) -> bool:
    """Whether it is a lone surrogate, half of a character, which no text may hold."""
    return "\ud800" <= character <= "\udfff"


def first_unknown(backend: Tokenizer, text: str) -> int:
    """The position of the first character that keeps `text` from being encoded whole."""
    half = next((i for i, c in enumerate(text) if is_half(c)), None)
    if half is not None:
        return half
    if backend.pre_tokenizer is not None and type(backend.model).__name__ == "WordLevel":
        words = backend.pre_tokenizer.pre_tokenize_str(text)
        return next((start for w, (start, _) in words if backend.token_to_id(w) is None), 0)
    for start, part in _parts(backend, text):
        if known_ids(backend, part) is None:
            lost = lambda n, part=part: known_ids(backend, part[: n + 1]) is None  # noqa: E731
            return start + bisect_left(range(len(part) - 1), True, key=lost)
    return 0


@lru_cache(maxsize=8)
def _unknown_id(backend: Tokenizer) -> int | None:
    """The id of what stands for an unknown word, of a tokenizer that has one."""
    try:
        tokens = backend.model.tokenize(NO_CHARACTER)
    except Exception:  # it raises for an unknown word
        return None
    one = tokens[0].id if len(tokens) == 1 else None
    return one if one is not None and backend.id_to_token(one) != NO_CHARACTER else None


@lru_cache(maxsize=8)
def _may_drop(backend: Tokenizer) -> bool:
    """Whether there are characters that the model leaves out without a word."""
    try:
        if backend.model.tokenize(NO_CHARACTER):
            return False
    except Exception:  # it raises for an unknown word
        return False
    alphabet = set(ByteLevel.alphabet())
    bytewise = set("".join(_words(backend, NO_CHARACTER))) <= alphabet
    return not bytewise or any(backend.token_to_id(c) is None for c in alphabet)


def _drops(backend: Tokenizer, text: str) -> bool:
    model = backend.model
    prefix = getattr(model, "continuing_subword_prefix", None) or ""
    suffix = getattr(model, "end_of_word_suffix", None) or ""

    def whole(word: str) -> bool:
        pieces = [token.value.removesuffix(suffix) for token in model.tokenize(word)]
        pieces = pieces[:1] + [piece.removeprefix(prefix) for piece in pieces[1:]]
        return "".join(pieces).replace(SPACE, "") == word.replace(SPACE, "")

    return not all(whole(w) for _, part in _parts(backend, text) for w in _words(backend, part))


def _words(backend: Tokenizer, text: str) -> list[str]:
    """What the model is given of a text: normalised, and cut into words."""
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return [text]
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def _parts(backend: Tokenizer, text: str) -> list[tuple[int, str]]:
    """What lies between the tokens that were added to the vocabulary whole, and where it starts."""
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    longest = sorted((re.escape(content) for content in added), key=len, reverse=True)
    cuts = [m.span() for m in re.finditer("|".join(longest), text)] if longest else []
    starts, ends = [0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(text)]
    return [(a, text[a:b]) for a, b in zip(starts, ends, strict=True) if a < b]
