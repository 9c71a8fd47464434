"""Stop strings: the token at which a completion's text first contains one.

An automaton (Aho and Corasick, 1975) reads the text, a whole token at a time: a table
i16[S, V] of the state that each token leads to, made once on the host. State 0 is that of a
completion without text, the last that of one that has ended.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.tokenizers import TextTokenizer, decode

START = 0
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_TRIED = 64  # sequences of tokens whose text is compared with that of the tokens
_TAIL = (0x80, 0xBF)  # the bytes of a character after its first, with few exceptions
# Which bytes are yet to come of a character, (lowest, highest) each; None after a wrong one.
Pending = tuple[tuple[int, int], ...] | None


def advance(table: jax.Array, state: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """States i32[...] after one more token i32[...] of each, and whether that ended it, bool."""
    state = table[state, tokens].astype(jnp.int32)
    return state, state == len(table) - 1


def cut(text: str, strings: Sequence[str]) -> str:
    """The text up to the end of the stop string that it first contains; whole without one."""
    ends = [text.find(string) + len(string) for string in strings if string in text]
    return text[: min(ends, default=None)]


def stop_table(
    tokenizer: TextTokenizer,
    strings: Sequence[str],
    vocab_size: int,
    name: str = "config.rollout.stop",
) -> np.ndarray:
    """The table i16[S, V] that ends completions at `strings`; V ids, those without text included.

    ValueError for a string that no text can hold, and where a token's text depends on more than
    whether it is the first. It calls the strings by `name`.
    """
    step = _automaton([string.encode() for string in strings])
    silent, first, later, single = _pieces(tokenizer, vocab_size)
    _check_pieces(tokenizer, silent, first, later, single, name)
    _check_strings(tokenizer, strings, first, later, single, name)
    ended = len(step) - 1
    opening, going = _run(step, first)[0], _run(step, later)
    known: dict[tuple[int, Pending], int] = {}  # the states after START, except the last
    waiting: list[tuple[int, Pending]] = [(k, ()) for k in range(ended)]
    for key in waiting:
        known.setdefault(key, len(known) + 1)
    rows: list[list[tuple[int, Pending]]] = []
    for k, pending in waiting:  # which grows
        after = [_after(step, k, pending, byte) for byte in single.values()]
        rows.append(after)
        for key in after:
            if key[0] != ended and key not in known:
                known[key] = len(known) + 1
                waiting.append(key)
    last = len(known) + 1
    table = np.zeros((last + 1, vocab_size), np.int16 if last < 2**15 else np.int32)
    number = np.array([*(known[k, ()] for k in range(ended)), last])
    table[START] = number[opening]
    for (k, pending), state in known.items():
        # A token of text leaves bytes that are no character, and what they began is void.
        table[state] = number[going[0 if pending != () else k]]
    bytes_ = list(single)
    of = lambda key: last if key[0] == ended else known[key]  # noqa: E731
    for key, after in zip(waiting, rows, strict=True):
        table[known[key], bytes_] = [of(k) for k in after]
    table[START, bytes_] = [
        of(_after(step, 0, (), byte)) if first[i] else known[0, ()] for i, byte in single.items()
    ]
    table[:, silent] = np.arange(last + 1)[:, None]
    table[last] = last
    return table


def _automaton(strings: Sequence[bytes]) -> np.ndarray:
    """Next states i32[K + 1, 256] of bytes: 0 is the root, K has seen one of the strings."""
    starts = {string[:i] for string in strings for i in range(len(string))}
    number = {start: i for i, start in enumerate(sorted(starts, key=len))}
    step = np.zeros((len(number) + 1, 256), np.int32)
    for start, i in number.items():
        for byte in {*b"".join(strings)}:
            seen = start + bytes([byte])
            tails = (seen[n:] for n in range(len(seen) + 1))
            longest = next(tail for tail in tails if tail in number)
            step[i, byte] = len(number) if seen.endswith(tuple(strings)) else number[longest]
    step[-1] = len(number)
    return step


def _run(step: np.ndarray, pieces: Sequence[bytes]) -> np.ndarray:
    """States i32[K + 1, V] after each piece, from each state."""
    lengths = np.array([len(piece) for piece in pieces])
    text = np.frombuffer(b"".join(pieces), np.uint8)
    starts = np.cumsum(lengths) - lengths
    state = np.repeat(np.arange(len(step))[:, None], len(pieces), axis=1)
    order = np.argsort(-lengths, kind="stable")
    for i in range(lengths.max(initial=0)):
        longer = order[: np.count_nonzero(lengths > i)]
        state[:, longer] = step[state[:, longer], text[starts[longer] + i]]
    return state


def _after(step: np.ndarray, k: int, pending: Pending, byte: int) -> tuple[int, Pending]:
    """The state after a token that is one byte; a run of them with a wrong one is no text at all
    (the decoder ByteFallback)."""
    pending = _utf8(pending, byte)
    return (0, None) if pending is None else (int(step[k, byte]), pending)


def _utf8(pending: Pending, byte: int) -> Pending:
    if pending is None:
        return None
    if pending:
        low, high = pending[0]
        return pending[1:] if low <= byte <= high else None
    if byte < 0x80:
        return ()
    if 0xC2 <= byte <= 0xDF:
        return (_TAIL,)
    if 0xE0 <= byte <= 0xEF:
        return (0xA0 if byte == 0xE0 else 0x80, 0x9F if byte == 0xED else 0xBF), _TAIL
    if 0xF0 <= byte <= 0xF4:
        return (0x90 if byte == 0xF0 else 0x80, 0x8F if byte == 0xF4 else 0xBF), _TAIL, _TAIL
    return None


def _pieces(
    tokenizer: TextTokenizer, vocab_size: int
) -> tuple[list[int], list[bytes], list[bytes], dict[int, int]]:
    """Ids that decoding leaves out; each id's bytes as a text's first token, and later; and which
    ids are one byte of a character (ByteFallback)."""
    backend = tokenizer.backend
    special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    tokens = [backend.id_to_token(i) for i in range(vocab_size)]
    silent = [i for i, token in enumerate(tokens) if token is None or i in special]
    kinds = _decoders(backend.decoder)
    if "ByteLevel" in kinds:
        known = _letters()
        pieces = [_bytes(token or "", known) for token in tokens]
        for i in silent:
            pieces[i] = b""
        return silent, pieces, pieces, {}
    found = {i: _BYTE.fullmatch(t or "") for i, t in enumerate(tokens) if "ByteFallback" in kinds}
    single = {i: int(match[1], 16) for i, match in found.items() if match}
    ids = range(vocab_size)
    firsts = backend.decode_batch([[i] for i in ids], skip_special_tokens=True)
    anchor = next(i for i in ids if firsts[i].strip() and i not in single)
    before = firsts[anchor]
    both = backend.decode_batch([[anchor, i] for i in ids], skip_special_tokens=True)
    first, later = (
        [text.encode() for text in texts]
        for texts in (firsts, [text.removeprefix(before) for text in both])
    )
    for i in silent:
        first[i] = later[i] = b""
    return silent, first, later, single


def _decoders(decoder: Any) -> set[str]:
    """The names of what a tokenizer decodes by, those of a sequence each."""
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    return {part["type"] for part in state.get("decoders", [state])}


def _letters() -> dict[str, int]:
    """The bytes that GPT-2's letters stand for: printable ones themselves, others from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }


def _bytes(token: str, letters: dict[str, int]) -> bytes:
    """What a byte-level token stands for; one with another letter, such as an added one, itself."""
    if all(letter in letters for letter in token):
        return bytes(letters[letter] for letter in token)
    return token.encode()


def _check_strings(tokenizer, strings, first, later, single, name) -> None:
    """ValueError for a string that decoded text never holds."""
    special = [
        t.content for t in tokenizer.backend.get_added_tokens_decoder().values() if t.special
    ]
    for string in strings:
        if left_out := [token for token in special if token in string]:
            raise ValueError(
                f"{name}: {string!r} can never occur: decoding leaves the special token "
                f"{left_out[0]!r} out; valid: other texts (eos_token_id in generation_config.json "
                "names the tokens that end a completion)"
            )
        if not _occurs(string, first, later, single):
            raise ValueError(
                f"{name}: {string!r} can never occur: no tokens spell it; valid: texts that the "
                "tokenizer can write"
            )


def _occurs(string: str, first, later, single) -> bool:
    """Whether tokens, one after another, can have a text that holds the string."""
    step = _automaton([string.encode()])
    going = _run(step, later)
    bytes_ = [*single.values()]
    reached = {0, *(going if first is later else _run(step, first))[0].tolist()}
    waiting = [*reached]
    for k in waiting:  # which grows
        new = {*np.unique(going[k]).tolist(), *step[k, bytes_].tolist()} - reached
        reached |= new
        waiting += new
    return len(step) - 1 in reached


def _check_pieces(tokenizer, silent, first, later, single, name) -> None:
    """ValueError where decoded text is not that of its tokens one after another."""
    textless = {*silent, *single}
    usable = [i for i in range(len(first)) if i not in textless]
    rng = np.random.default_rng(0)
    for ids in rng.choice(usable, (_TRIED, 6)):
        text = b"".join([first[ids[0]], *(later[i] for i in ids[1:])])
        if decode(tokenizer, ids) != text.decode(errors="replace"):
            raise ValueError(
                f"{name}: this tokenizer's text is not that of its tokens one after "
                f"another: {decode(tokenizer, ids)!r}; valid: ()"
            )
