import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from chat_tokenizer import TEMPLATE, save
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from grpo_jax import tokenizers as tk
from grpo_jax.tasks import Problem

SYMBOLS = ["<think>", "</think>", "<", *"0123+ =\n[]\\.^é"]


@pytest.fixture
def tokenizer():
    return tk.char_tokenizer(SYMBOLS)


def test_each_symbol_is_one_token_after_pad_and_eos(tokenizer):
    assert tokenizer.pad == tokenizer.backend.token_to_id("<pad>") == 0
    assert tokenizer.stop == (tokenizer.backend.token_to_id("<eos>"),) == (1,)
    for i, symbol in enumerate(SYMBOLS):
        assert tk.encode(tokenizer, symbol) == [i + 2]
    assert tokenizer.vocab_size == len(SYMBOLS) + 2


def test_text_survives_encoding_and_decoding(tokenizer):
    text = "<think>1+2 =\n[3]\\.^</think><<é"
    ids = tk.encode(tokenizer, text)
    assert len(ids) == len(text) - len("think>") - len("/think>")
    assert tk.decode(tokenizer, ids) == text


def test_decode_keeps_tags_and_drops_padding_and_end(tokenizer):
    ids = [0, 0, *tk.encode(tokenizer, "<think>1"), 1, 0]
    assert tk.decode(tokenizer, np.array(ids)) == "<think>1"


def test_a_character_outside_is_named_with_its_position(tokenizer):
    with pytest.raises(ValueError, match=r"'7' at position 8 .*'<think>17'"):
        tk.encode(tokenizer, "<think>17")


def test_the_position_counts_characters_not_bytes(tokenizer):
    with pytest.raises(ValueError, match="'ü' at position 2 "):
        tk.encode(tokenizer, "ééü")


def test_an_unknown_token_is_an_error_too():
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer = tk.TextTokenizer(backend, pad=1, stop=(1,))
    with pytest.raises(ValueError, match="'b' at position 0"):
        tk.encode(tokenizer, "b")


def test_the_longest_tag_wins():
    tokenizer = tk.char_tokenizer(["<a>", "<a>>", "<", "a", ">"])
    assert tk.encode(tokenizer, "<a>>") == [tokenizer.backend.token_to_id("<a>>")]


def test_an_empty_symbol_is_refused():
    with pytest.raises(ValueError, match="at least one character"):
        tk.char_tokenizer(["a", ""])


def test_a_saved_tokenizer_loads_from_file_and_directory(tokenizer, tmp_path):
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = tk.load_tokenizer(path)
        assert (loaded.pad, loaded.stop) == (0, (1,))
        ids = tk.encode(loaded, "<think>1+2")
        assert ids == tk.encode(tokenizer, "<think>1+2")
        assert tk.decode(loaded, [*ids, 1]) == "<think>1+2"
        with pytest.raises(ValueError, match="'x' at position 1"):
            tk.encode(loaded, "1x")


def test_files_may_begin_with_a_byte_order_mark_and_lie_at_home(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    template = tk.TextTokenizer(tokenizer.backend, tokenizer.pad, tokenizer.stop, "{{ messages }}")
    tk.save_tokenizer(template, tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    for file in tmp_path.iterdir():
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    loaded = tk.load_tokenizer("~")
    assert loaded.stop == tokenizer.stop and loaded.chat_template == "{{ messages }}"
    assert tk.encode(loaded, "1+2") == tk.encode(tokenizer, "1+2")


def test_loading_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: no such file"):
        tk.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a Hugging Face tokenizer"):
        tk.load_tokenizer(tmp_path)


def test_prompts_are_padded_on_the_left(tokenizer):
    tokens, mask = tk.encode_prompts(tokenizer, [Problem("12"), Problem("1+2=")], 5)
    assert tokens.dtype == np.int32 and mask.dtype == bool
    assert tokens.shape == mask.shape == (2, 5)
    assert mask.tolist() == [[False] * 3 + [True] * 2, [False] + [True] * 4]
    assert tokens[0].tolist() == [0, 0, 0, *tk.encode(tokenizer, "12")]


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        ("1+2+3", r"prompt 1 \('1\+2\+3'\) has 5 tokens; valid: 1 to 4"),
        ("", r"prompt 1 \(''\) has 0 tokens"),
        ("1+9", r"prompt 1 \('1\+9'\): character '9' at position 2"),
        ([{"role": "user", "content": "1"}], "prompt 1 .*need a tokenizer with a chat template"),
    ],
)
def test_a_bad_prompt_is_named(tokenizer, prompt, match):
    with pytest.raises(ValueError, match=match):
        tk.encode_prompts(tokenizer, [Problem("1"), Problem(prompt)], 4)


@pytest.mark.parametrize(
    ("length", "sizes", "expected"),
    [(1, 32, 32), (32, 32, 32), (33, 32, 64), (0, 8, 8), (5, (16, 8), 8), (9, (8, 16), 16)],
)
def test_bucket(length, sizes, expected):
    assert tk.bucket(length, sizes) == expected


def test_bucket_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="length 17 is above the largest bucket, 16"):
        tk.bucket(17, (8, 16))


CHAT = [
    [{"role": "user", "content": "What is 12 + 34?"}],
    [
        {"role": "system", "content": "the cat\n\n日本 🙂"},
        {"role": "user", "content": " the mat <|endoftext|> <s>"},
        {"role": "assistant", "content": "<think>46</think>"},
        {"role": "user", "content": ""},
    ],
]
TEXTS = ["the cat", " 12 + 34\n\n", "日本🙂é", "<s>12<|im_end|> + 3<|im_start|>", "zebra\t<think>"]


def change(file: Path, **changes) -> None:
    """Set the fields of a JSON object in a file; None takes one out."""
    settings = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({k: v for k, v in (settings | changes).items() if v is not None}))


@pytest.fixture
def folder(tmp_path):
    save(tmp_path)
    return tmp_path


def layout(folder: Path, name: str) -> None:
    """Change a folder from the newest layout to an older one."""
    config = folder / "tokenizer_config.json"
    if name == "template in the settings":
        (folder / "chat_template.jinja").unlink()
        change(config, chat_template=TEMPLATE)
    elif name == "templates by name":
        (folder / "chat_template.jinja").unlink()
        named = {"tool_use": "tools", "default": TEMPLATE}
        change(config, chat_template=[{"name": n, "template": t} for n, t in named.items()])
    elif name == "the file wins":
        change(config, chat_template="settings")
    elif name == "tokens as objects":
        token = {"content": "<|im_end|>", "lstrip": False, "special": True}
        change(config, eos_token={"__type": "AddedToken", **token})
    elif name == "special_tokens_map":
        change(config, bos_token=None, eos_token=None)
        tokens = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "<|im_end|>"}
        change(folder / "special_tokens_map.json", **tokens)
    elif name == "truncation and padding":
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        backend.enable_truncation(3)
        backend.enable_padding(length=8, pad_token="<|endoftext|>")
        backend.save(str(folder / "tokenizer.json"))


LAYOUTS = ["newest", "template in the settings", "templates by name", "the file wins"]
LAYOUTS += ["tokens as objects", "special_tokens_map", "truncation and padding"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_prompts_are_those_of_transformers(folder, name):
    layout(folder, name)
    ours, theirs = tk.load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert tk.prompt_ids(ours, text) == theirs(text).input_ids
        assert tk.encode(ours, text) == theirs(text, add_special_tokens=False).input_ids
    for messages in CHAT:
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert tk.prompt_ids(ours, messages) == ids
        assert ids[0] == theirs.bos_token_id != ids[1]
    assert ours.stop == (theirs.eos_token_id,)


def test_decoding_is_that_of_transformers(folder):
    ours, theirs = tk.load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = theirs(text).input_ids
        assert tk.decode(ours, ids) == theirs.decode(ids, skip_special_tokens=True)
    ids = tk.encode(ours, "<think>🙂")
    assert tk.decode(ours, ids) == "<think>🙂"
    assert tk.decode(ours, ids[:-1]) == "<think>\ufffd"  # what was cut off is not an error


def test_a_named_token_is_special_even_where_the_vocabulary_has_it_as_a_word(tmp_path):
    plain = Tokenizer(models.WordLevel({"a": 0, "</s>": 1, "?": 2}, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    plain.save(str(tmp_path / "tokenizer.json"))
    change(tmp_path / "tokenizer_config.json", eos_token="</s>")
    ours = tk.load_tokenizer(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert tk.prompt_ids(ours, "a</s>") == theirs("a</s>").input_ids == [0, 1]
    assert tk.decode(ours, [0, 1]) == theirs.decode([0, 1], skip_special_tokens=True) == "a"


@pytest.mark.parametrize(
    ("files", "stop", "pad"),
    [
        ({}, [2], 2),
        ({"generation_config": {"eos_token_id": 3}}, [2, 3], 2),
        (
            {"generation_config": {"eos_token_id": [3, 2, 1]}, "config": {"eos_token_id": 2}},
            None,
            2,
        ),
        ({"config": {"eos_token_id": 3, "pad_token_id": 0}}, [2, 3], 0),
        ({"config": {"eos_token_id": None, "pad_token_id": -1}}, [2], 2),
        ({"config": {"eos_token_id": 999, "pad_token_id": 999}}, [2], 2),
        ({"tokenizer_config": {"pad_token": "<|endoftext|>"}}, [2], 3),
        ({"tokenizer_config": {"pad_token": "<nowhere>"}}, [2], 2),
        ({"tokenizer_config": {"eos_token": None}, "config": {"eos_token_id": 3}}, [3], 3),
    ],
)
def test_every_end_of_sequence_token_stops_and_one_token_pads(folder, files, stop, pad):
    for name, fields in files.items():
        change(folder / f"{name}.json", **fields)
    tokenizer = tk.load_tokenizer(folder)
    assert tokenizer.stop == tuple(stop or [2, 3, 1]) and tokenizer.pad == pad


@pytest.mark.parametrize(
    ("file", "fields", "match"),
    [
        ("config.json", {"eos_token_id": "2"}, r"config\.json: eos_token_id='2'; valid: an id"),
        ("tokenizer_config.json", {"eos_token": 2}, "eos_token=2; valid: text"),
        ("tokenizer_config.json", {"eos_token": None}, "nothing says which token ends"),
        ("tokenizer_config.json", {"chat_template": 3}, "chat_template is 3; valid: text"),
    ],
)
def test_settings_that_make_no_sense_are_named(folder, file, fields, match):
    (folder / "chat_template.jinja").unlink()
    change(folder / file, **fields)
    with pytest.raises(ValueError, match=match):
        tk.load_tokenizer(folder)


@pytest.mark.parametrize(("text", "match"), [("{", "not JSON"), ("[]", "list; valid: a JSON obj")])
def test_a_broken_file_of_settings_is_named(folder, text, match):
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"generation_config\.json: .*{match}"):
        tk.load_tokenizer(folder)


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (TEMPLATE, "refuses the messages: no role tool"),
        ("{{ messages.content + 1 }}", "refuses the messages: .*no attribute 'content'"),
        ("{% if %}", "refuses the messages: "),
        (None, "need a tokenizer with a chat template; valid: text"),
    ],
)
def test_a_template_that_refuses_is_one_clear_error(folder, template, match):
    tokenizer = dataclasses.replace(tk.load_tokenizer(folder), chat_template=template)
    with pytest.raises(ValueError, match=match):
        tk.prompt_ids(tokenizer, [{"role": "tool", "content": "x"}])


def test_without_transformers_text_works_and_chat_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.utils.chat_template_utils", None)
    tokenizer = tk.load_tokenizer(folder)
    assert len(tk.prompt_ids(tokenizer, "the cat")) > 1
    with pytest.raises(ValueError, match=r"pip install 'grpo_jax\[hf\]'"):
        tk.prompt_ids(tokenizer, CHAT[0])


def test_the_token_that_a_text_is_complete_with_is_the_tokenizers_own(tmp_path):
    """Every end against the offsets of the encoding, which know no decoding of prefixes."""
    save(tmp_path)
    tokenizer = tk.load_tokenizer(tmp_path)
    text = "<think>12 + 34 = 46</think> the cat ßü 日本 🙂."
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    ends = range(1, len(text) + 1)
    want = [max(i for i, (a, b) in enumerate(encoding.offsets) if a < end <= b) for end in ends]
    assert tk.end_tokens(tokenizer, [*encoding.ids, tokenizer.stop[0]], ends) == want
    inside = [e for e, i in zip(ends, want, strict=True) if encoding.offsets[i][1] > e]
    split = len(encoding.ids) - len(set(encoding.offsets))
    assert len(inside) > 5 and split == 2  # "ß" and "ü" are two tokens each


def test_the_token_that_a_text_is_complete_with_may_be_a_byte(tmp_path):
    """A policy need not write as the tokenizer would: byte by byte, and some that are no text."""
    save(tmp_path)
    tokenizer = tk.load_tokenizer(tmp_path)
    text = "46 日本 ß🙂"
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    [(mapped, _)] = letters.pre_tokenize_str(text)
    ids = [tokenizer.backend.token_to_id(c) for c in mapped]
    want = [len(text[:end].encode()) - 1 for end in range(1, len(text) + 1)]
    assert tk.end_tokens(tokenizer, ids, range(1, len(text) + 1)) == want
    half = tokenizer.backend.token_to_id(mapped[3])  # of 日, whose other bytes never come
    assert tk.end_tokens(tokenizer, [half, *ids], [1, 2, 3]) == [0, 1, 2]


def test_a_tag_completes_all_of_its_characters(tokenizer):
    ids = tk.encode(tokenizer, "<think>1+2</think>")
    assert tk.end_tokens(tokenizer, ids, [1, 7, 8, 10, 11, 18]) == [0, 0, 1, 3, 4, 4]
    assert tk.end_tokens(tokenizer, [], []) == []
