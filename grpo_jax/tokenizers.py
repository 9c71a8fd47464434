"""Text to token ids and back, through the Hugging Face `tokenizers` library."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

PAD, EOS = "<pad>", "<eos>"
CHATML = ("<|im_start|>", "<|im_end|>")

Messages = list[dict[str, str]]


class HasPrompt(Protocol):
    """What a problem must offer here: its prompt, as text or as chat messages."""

    @property
    def prompt(self) -> str | Messages:
        """Text, or chat messages with `role` and `content`."""


def char_tokenizer(symbols: Iterable[str]) -> Tokenizer:
    """A tokenizer with one token per symbol; "<pad>" is id 0 and "<eos>" is id 1.

    A symbol is one character or a longer tag such as "<think>"; where several match, the longest
    wins. ValueError for an empty symbol.
    """
    unique = [s for s in dict.fromkeys(symbols) if s not in (PAD, EOS)]
    if "" in unique:
        raise ValueError("symbols: '' is not a symbol; each must have at least one character")
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, *unique])}
    # No unknown token: a character outside the vocabulary must stop, not turn into a silent id.
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=""))
    tags = sorted((s for s in unique if len(s) > 1), key=len, reverse=True)
    pattern = "|".join([*map(_escape, tags), r"[\s\S]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([PAD, EOS])
    return tokenizer


def _escape(text: str) -> str:
    return "".join(c if c.isalnum() or ord(c) > 127 else "\\" + c for c in text)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`, or in a directory that holds one.

    FileNotFoundError names the file that is missing; ValueError one that cannot be read.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file; a Hugging Face tokenizer is a tokenizer.json"
        )
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{file}: not a Hugging Face tokenizer.json: {error}") from error


def encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """The token ids of `text`; ValueError names the first character outside the vocabulary."""
    try:
        encoding = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    except Exception as error:  # the library raises bare Exception for a word it lacks
        position = _first_unknown(tokenizer, text)
        if position is None:
            raise
        raise ValueError(_outside(text, position)) from error
    unknown = getattr(tokenizer.model, "unk_token", None)
    unknown_id = tokenizer.token_to_id(unknown) if unknown else None
    if unknown_id is not None and unknown_id in encoding.ids:
        position = encoding.offsets[encoding.ids.index(unknown_id)][0]
        raise ValueError(_outside(text, position))
    return encoding.ids


def _first_unknown(tokenizer: Tokenizer, text: str) -> int | None:
    if tokenizer.pre_tokenizer is None:
        return None
    words = tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return next((start for w, (start, _) in words if tokenizer.token_to_id(w) is None), None)


def _outside(text: str, position: int) -> str:
    return (
        f"character {text[position]!r} at position {position} is outside the tokenizer's "
        f"vocabulary: {excerpt(text)}"
    )


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of `ids`: tags stay; padding, end-of-sequence and other special tokens go."""
    return tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


def prompt_ids(tokenizer: Tokenizer, prompt: str | Messages) -> list[int]:
    """The token ids of a prompt, ready for the model to continue.

    Text gets the tokenizer's own leading token, where it has one; chat messages are laid out as
    ChatML, with the assistant's turn opened. ValueError where the tokenizer lacks ChatML's tokens.
    """
    if isinstance(prompt, str):
        return encode(tokenizer, prompt, add_special_tokens=True)
    start, end = CHATML
    if tokenizer.token_to_id(start) is None or tokenizer.token_to_id(end) is None:
        raise ValueError(
            f"chat messages need a tokenizer with the tokens {start} and {end}; "
            "give the prompt as text instead"
        )
    turns = "".join(f"{start}{m['role']}\n{m['content']}{end}\n" for m in prompt)
    return encode(tokenizer, f"{turns}{start}assistant\n")


def encode_prompts(
    tokenizer: Tokenizer, problems: Sequence[HasPrompt], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Left-padded prompts: tokens int32 [P, length]; mask bool [P, length], True on real tokens.

    ValueError names a prompt that is empty, too long, or outside the vocabulary.
    """
    tokens = np.full((len(problems), length), pad_id, np.int32)
    mask = np.zeros((len(problems), length), bool)
    for row, problem in enumerate(problems):
        record = f"prompt {row} ({excerpt(problem.prompt)})"
        try:
            ids = prompt_ids(tokenizer, problem.prompt)
        except ValueError as error:
            raise ValueError(f"{record}: {error}") from error
        if not 0 < len(ids) <= length:
            raise ValueError(f"{record} has {len(ids)} tokens; valid: 1 to {length}")
        tokens[row, length - len(ids) :] = ids
        mask[row, length - len(ids) :] = True
    return tokens, mask


def bucket(length: int, sizes: int | Sequence[int] = 32) -> int:
    """The padded length for `length` tokens, so that nearby lengths share one compiled program.

    The next multiple of `sizes`, or the smallest of `sizes` that fits; ValueError where none does.
    """
    if isinstance(sizes, int):
        return -(-max(length, 1) // sizes) * sizes
    fitting = [size for size in sizes if size >= length]
    if not fitting:
        raise ValueError(f"length {length} is above the largest bucket, {max(sizes)}")
    return min(fitting)


def excerpt(value: object, limit: int = 80) -> str:
    """`repr(value)`, cut to about `limit` characters for an error message."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
