"""Text and chat messages to token ids and back, as Hugging Face's tokenizers have it."""

import codecs
import dataclasses
import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from grpo_jax.errors import excerpt
from grpo_jax.files import Json, appearing, at_home, read_object
from grpo_jax.rewards.turn import written
from grpo_jax.tokenizers.chat import Messages, chat_prefill, render_chat
from grpo_jax.tokenizers.vocabulary import first_unknown, is_half, known_ids, known_ids_of

PAD, EOS = "<pad>", "<eos>"
# The names under which a chat template may find the tokenizer's special tokens.
NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


class HasPrompt(Protocol):
    """The attribute of a problem that tokenizers need: its prompt, text or chat messages."""

    @property
    def prompt(self) -> str | Messages:
        """Text, or chat messages with `role` and `content`."""


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer, and what prompting and sampling need to know of it.

    backend          text to ids and back
    pad              id that fills up a row; what it stands for is masked everywhere
    stop             ids that end a completion; the first is the one to end a worked solution with
    chat_template    Jinja text that lays out chat messages; None where there is none
    special_tokens   what the template may name, {"bos_token": "<s>", ...}
    template_kwargs  what else it is given, {"enable_thinking": False}
    """

    backend: Tokenizer
    pad: int
    stop: tuple[int, ...]
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    template_kwargs: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, special ones included."""
        return self.backend.get_vocab_size()


def char_tokenizer(symbols: Iterable[str]) -> TextTokenizer:
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
    special = {"eos_token": EOS, "pad_token": PAD}
    return TextTokenizer(tokenizer, vocabulary[PAD], (vocabulary[EOS],), special_tokens=special)


def _escape(text: str) -> str:
    return "".join(c if c.isalnum() or ord(c) > 127 else "\\" + c for c in text)


def load_tokenizer(path: str | Path) -> TextTokenizer:
    """The tokenizer of a Hugging Face directory, or of a tokenizer.json and what lies beside it.

    tokenizer_config.json or special_tokens_map.json name the special tokens; the end-of-sequence
    token and every `eos_token_id` of generation_config.json and config.json end a completion. The
    chat template is chat_template.jinja, or else in tokenizer_config.json. Where nothing names a
    padding token, the first stop id pads: masks make it harmless.

    FileNotFoundError names the file that is missing; ValueError one that cannot be read, and a
    tokenizer that nothing gives an end-of-sequence token.
    """
    file = at_home(path)
    if file.is_dir():
        file = file / "tokenizer.json"
    backend, folder = _backend(file), file.parent
    settings = _settings(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in settings:  # the older layout, as Transformers reads it
        settings |= _settings(folder / "special_tokens_map.json")
    special = _special_tokens(settings, backend, folder)
    stop = _ids("eos", special, backend, folder)
    if not stop:
        raise ValueError(
            f"{file}: nothing says which token ends a sequence; valid: an eos_token beside it in "
            f"tokenizer_config.json, an eos_token_id in generation_config.json, or a token {EOS}"
        )
    pad = _ids("pad", special, backend, folder) or stop
    return TextTokenizer(backend, pad[0], stop, _chat_template(folder, settings), special)


def save_tokenizer(tokenizer: TextTokenizer, folder: Path) -> None:
    """Write a tokenizer into a directory as Transformers reads it, and `load_tokenizer` the same
    tokenizer: no token is named that was not, for a template may print what has a name."""
    stop, pad = list(tokenizer.stop), tokenizer.pad
    settings: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **tokenizer.special_tokens,
    }
    for name, number in (("eos_token", stop[0]), ("pad_token", pad)):
        if name in settings:
            settings[name] = tokenizer.backend.id_to_token(number)
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    for name, content in (
        ("tokenizer_config.json", settings),
        ("generation_config.json", {"eos_token_id": stop, "pad_token_id": pad}),
    ):
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def keep_tokenizer(tokenizer: TextTokenizer, folder: Path) -> None:
    """Write a tokenizer as the new directory `folder`, whole or not at all; nothing where it is
    there already. ValueError where another stands there."""
    if not folder.exists():
        with appearing(folder) as made:
            save_tokenizer(tokenizer, made)
    elif not same_tokenizer(kept_tokenizer(folder), tokenizer):
        raise ValueError(f"{folder} holds another tokenizer; valid: this one, or none there")


def kept_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer that `keep_tokenizer` wrote; ValueError names a file of it that is missing."""
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: {name} is missing, a part of the run's tokenizer")
    return load_tokenizer(folder)


def same_tokenizer(one: TextTokenizer, other: TextTokenizer) -> bool:
    """Whether both read, lay out, pad and end texts alike."""
    parts = [
        (t.backend.to_str(), t.pad, t.stop, t.chat_template, dict(t.special_tokens))
        for t in (one, other)
    ]
    return parts[0] == parts[1]


def _backend(file: Path) -> Tokenizer:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: no such file; a Hugging Face tokenizer is a tokenizer.json"
        )
    content = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        backend = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{file}: not a Hugging Face tokenizer.json: {error}") from error
    # Some files ask for both: a prompt must stay whole, and rows are padded here.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _settings(file: Path) -> Json:
    return read_object(file) if file.is_file() else {}


def _special_tokens(settings: Json, backend: Tokenizer, folder: Path) -> dict[str, str]:
    """The special tokens that are named and in the vocabulary, made special where they are not."""
    special = {}
    for name in NAMED:
        value = settings.get(name)
        token = value.get("content") if isinstance(value, dict) else value
        if token is not None and not isinstance(token, str):
            raise ValueError(f'{folder}: {name}={value!r}; valid: text, or {{"content": text}}')
        if token is not None and backend.token_to_id(token) is not None:
            special[name] = token
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_special_tokens([token for token in special.values() if token not in added])
    return special


def _ids(name: str, special: dict[str, str], backend: Tokenizer, folder: Path) -> tuple[int, ...]:
    """Every id in the vocabulary that is the tokenizer's or the model's "eos" or "pad"."""
    ids = [backend.token_to_id(token) for key, token in special.items() if key == f"{name}_token"]
    for file in (folder / "generation_config.json", folder / "config.json"):
        value = _settings(file).get(f"{name}_token_id")
        given = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int for i in given):
            raise ValueError(f"{file}: {name}_token_id={value!r}; valid: an id or a list of them")
        ids += given
    if not ids:  # a tokenizer of ours, saved without settings, goes by its tokens' names
        ids = [backend.token_to_id({"eos": EOS, "pad": PAD}[name])]
    # Older files write -1 for none, and some ids that the vocabulary lacks.
    known = [i for i in ids if i is not None and i >= 0 and backend.id_to_token(i) is not None]
    return tuple(dict.fromkeys(known))


def _chat_template(folder: Path, settings: Json) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: not UTF-8: {error}") from error
    template = settings.get("chat_template")
    if isinstance(template, list) and all(isinstance(t, dict) for t in template):  # by name
        template = {t.get("name"): t.get("template") for t in template}.get("default")
    if template is not None and not isinstance(template, str):
        raise ValueError(f"{folder}: chat_template is {excerpt(template)}; valid: text")
    return template


def encode(tokenizer: TextTokenizer, text: str, *, add_special_tokens: bool = False) -> list[int]:
    """The token ids of `text`; ValueError names the first character outside the vocabulary."""
    ids = known_ids(tokenizer.backend, text, add_special_tokens)
    if ids is None:
        raise ValueError(_outside(text, first_unknown(tokenizer.backend, text)))
    return ids


def encode_each(
    tokenizer: TextTokenizer, texts: Sequence[str], *, add_special_tokens: bool = False
) -> list[list[int] | ValueError]:
    """What `encode` gives, or raises, of each text; the library's threads share the work."""
    backend = tokenizer.backend
    return [
        ValueError(_outside(text, first_unknown(backend, text))) if ids is None else ids
        for text, ids in zip(texts, known_ids_of(backend, texts, add_special_tokens), strict=True)
    ]


def _outside(text: str, position: int) -> str:
    character = text[position]
    fault = "is outside the tokenizer's vocabulary"
    if is_half(character):
        fault = "is half of a character, a lone surrogate"
    return f"character {character!r} at position {position} {fault}: {excerpt(text)}"


def decode(tokenizer: TextTokenizer, ids: Sequence[int]) -> str:
    """The text of `ids`: padding, end-of-sequence and other special tokens go, the rest stays.

    A tag such as <think> stays unless the tokenizer itself marks it as special. Bytes that are not
    whole characters become U+FFFD.
    """
    return tokenizer.backend.decode([int(i) for i in ids], skip_special_tokens=True)


def end_tokens(tokenizer: TextTokenizer, ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """Which of `ids` completes the first n characters of their text, for each n of `ends`.

    It may go on beyond them; one that brings the first of a character's bytes does not complete it.
    What is no character is complete with its first byte, as U+FFFD.
    """
    text = decode(tokenizer, ids)

    def complete(i: int, end: int) -> bool:
        return decode(tokenizer, ids[: i + 1]).startswith(text[:end])

    # The text of more ids starts as that of fewer does, whole characters at least.
    rest = range(len(ids) - 1)
    return [bisect_left(rest, True, key=partial(complete, end=end)) for end in ends]


def prompt_ids(tokenizer: TextTokenizer, prompt: str | Messages) -> list[int]:
    """The token ids of a prompt, ready for the model to continue.

    Text gets the tokenizer's own special tokens; chat messages get those that the chat template
    writes, and no second ones. A chat that ends in an assistant's message is continued there.
    ValueError as of `encode` and `render_chat`, and where there is no template.
    """
    text = prompt_text(tokenizer, prompt)
    return encode(tokenizer, text, add_special_tokens=isinstance(prompt, str))


def prompt_text(tokenizer: TextTokenizer, prompt: str | Messages) -> str:
    """The text that `prompt_ids` encodes: chat messages as the template lays them out."""
    return prompt if isinstance(prompt, str) else render_chat(*_template(tokenizer, prompt))


def prefill(tokenizer: TextTokenizer, prompt: str | Messages) -> str:
    """What the prompt, laid out for the model, holds of the assistant's turn (`rewards.turn`)."""
    if isinstance(prompt, str):
        return written(prompt)
    return chat_prefill(*_template(tokenizer, prompt))


def _template(
    tokenizer: TextTokenizer, messages: Messages
) -> tuple[str, Messages, dict[str, object]]:
    if tokenizer.chat_template is None:
        raise ValueError("chat messages need a tokenizer with a chat template; valid: text")
    known = {**tokenizer.special_tokens, **tokenizer.template_kwargs}
    return tokenizer.chat_template, messages, known


def encode_prompts(
    tokenizer: TextTokenizer, problems: Sequence[HasPrompt], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Left-padded prompts: tokens int32 [P, length]; mask bool [P, length], True on real tokens.

    ValueError names a prompt that is empty, too long, or outside the vocabulary.
    """
    tokens = np.full((len(problems), length), tokenizer.pad, np.int32)
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
