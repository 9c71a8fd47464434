import numpy as np
import pytest
from tokenizers import Tokenizer, models

from grpo_jax import tokenizers as tk
from grpo_jax.tasks import Problem

SYMBOLS = ["<think>", "</think>", "<", *"0123+ =\n[]\\.^é"]


@pytest.fixture
def tokenizer():
    return tk.char_tokenizer(SYMBOLS)


def test_each_symbol_is_one_token_after_pad_and_eos(tokenizer):
    assert tokenizer.token_to_id("<pad>") == 0
    assert tokenizer.token_to_id("<eos>") == 1
    for i, symbol in enumerate(SYMBOLS):
        assert tk.encode(tokenizer, symbol) == [i + 2]
    assert tokenizer.get_vocab_size() == len(SYMBOLS) + 2


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
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="'b' at position 0"):
        tk.encode(tokenizer, "b")


def test_the_longest_tag_wins():
    tokenizer = tk.char_tokenizer(["<a>", "<a>>", "<", "a", ">"])
    assert tk.encode(tokenizer, "<a>>") == [tokenizer.token_to_id("<a>>")]


def test_an_empty_symbol_is_refused():
    with pytest.raises(ValueError, match="at least one character"):
        tk.char_tokenizer(["a", ""])


def test_a_saved_tokenizer_loads_from_file_and_directory(tokenizer, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = tk.load_tokenizer(path)
        ids = tk.encode(loaded, "<think>1+2")
        assert ids == tk.encode(tokenizer, "<think>1+2")
        assert tk.decode(loaded, [*ids, 1]) == "<think>1+2"
        with pytest.raises(ValueError, match="'x' at position 1"):
            tk.encode(loaded, "1x")


def test_loading_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: no such file"):
        tk.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a Hugging Face tokenizer"):
        tk.load_tokenizer(tmp_path)


def test_prompts_are_padded_on_the_left(tokenizer):
    tokens, mask = tk.encode_prompts(tokenizer, [Problem("12"), Problem("1+2=")], 5, pad_id=0)
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
        ([{"role": "user", "content": "1"}], r"prompt 1 .*<\|im_start\|>"),
    ],
)
def test_a_bad_prompt_is_named(tokenizer, prompt, match):
    with pytest.raises(ValueError, match=match):
        tk.encode_prompts(tokenizer, [Problem("1"), Problem(prompt)], 4, pad_id=0)


def test_chat_messages_become_chatml():
    tokenizer = tk.char_tokenizer([*tk.CHATML, *"user\nasistnhyo"])
    ids = tk.prompt_ids(tokenizer, [{"role": "user", "content": "yo"}])
    expected = "<|im_start|>user\nyo<|im_end|>\n<|im_start|>assistant\n"
    assert tk.decode(tokenizer, ids) == expected
    assert len(ids) == 3 + len("user\nyo\nassistant\n")


@pytest.mark.parametrize(
    ("length", "sizes", "expected"),
    [(1, 32, 32), (32, 32, 32), (33, 32, 64), (0, 8, 8), (5, (16, 8), 8), (9, (8, 16), 16)],
)
def test_bucket(length, sizes, expected):
    assert tk.bucket(length, sizes) == expected


def test_bucket_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="length 17 is above the largest bucket, 16"):
        tk.bucket(17, (8, 16))
