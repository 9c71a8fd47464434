"""GGUF files written here, by the gguf package, from a small random model and tokenizer."""

import json
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from chat_tokenizer import TEMPLATE, trained
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from grpo_jax.models.gguf import convert
from grpo_jax.tokenizers import load_tokenizer, prompt_ids

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
NAMES = {  # llama.cpp's for Transformers'
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers": "blk",
    "lm_head": "output",
}
MESSAGES = [{"role": "user", "content": "What is 12 + 34?\n\n56"}]


def random_model(vocab_size: int, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size, tie_word_embeddings=tied, initializer_range=0.3, **SIZES, **HEADS
    )
    return LlamaForCausalLM(config).eval()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k, each head's two halves alternating, as llama.cpp has them."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write(path, model: LlamaForCausalLM, tokenizer: Tokenizer, quantised: bool = False) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    add_tokenizer(writer, tokenizer)
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = parameter.numpy()
        if "q_proj" in name or "k_proj" in name:
            weight = interleaved(weight, len(weight) // config.head_dim)
        for theirs, llama_cpp in NAMES.items():
            name = name.replace(theirs, llama_cpp)
        if quantised and weight.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    kinds = [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """With SmolLM's way to split a text: each digit is a word of its own."""
    tokenizer = trained(pre_tokenizers.Digits(individual_digits=True))
    tokenizer.post_processor = None
    return tokenizer


@pytest.fixture(scope="module")
def file(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write(path, random_model(tokenizer.get_vocab_size(), tied=True), tokenizer)
    return path


@pytest.fixture(scope="module")
def converted(tmp_path_factory, file):
    out = tmp_path_factory.mktemp("models") / "new" / "tiny"
    convert(file, out)
    return out


def logits(model, tokens: int = 40) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(tokens)[None]).logits


def test_the_model_is_the_one_that_was_written(converted, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(converted)
    expected = random_model(tokenizer.get_vocab_size(), tied=True)
    torch.testing.assert_close(logits(model), logits(expected), rtol=0, atol=1e-5)
    config = json.loads((converted / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["dtype"] == "float32"
    assert config["tie_word_embeddings"] and "quantization_config" not in config
    assert {path.name for path in converted.parent.iterdir()} == {"tiny"}  # nothing left over


def test_the_tokenizer_and_its_chat_template_are_the_ones_that_were_written(converted, tokenizer):
    theirs, ours = AutoTokenizer.from_pretrained(converted), load_tokenizer(converted)
    for text in ("What is 12 + 34?\n\n56", "x  1<|im_end|>the cat 日本"):
        expected = tokenizer.encode(text).ids
        assert theirs(text).input_ids == prompt_ids(ours, text) == expected
    ids = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert prompt_ids(ours, MESSAGES) == ids and ids[0] == tokenizer.token_to_id("<s>")
    assert ours.stop == (tokenizer.token_to_id("<|im_end|>"),)


def test_quantised_weights_and_a_head_of_its_own(tmp_path, tokenizer):
    expected = random_model(tokenizer.get_vocab_size(), tied=False)
    write(tmp_path / "tiny.gguf", expected, tokenizer, quantised=True)
    (tmp_path / "out").mkdir()  # empty, which will do
    convert(tmp_path / "tiny.gguf", tmp_path / "out", "bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16 and not model.config.tie_word_embeddings
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, weight in expected.state_dict().items():
        if weight.ndim == 2:
            weight = torch.tensor(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind))
        torch.testing.assert_close(model.state_dict()[name], weight.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kept", "match"),
    [(0, "not a whole GGUF file"), (3, "not a whole"), (2000, "not a whole"), (-40, "not a whole")],
)
def test_a_file_that_was_cut_off_is_refused(file, tmp_path, kept, match):
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"cut\.gguf: {match}"):
        convert(tmp_path / "cut.gguf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["cut.gguf"]


def test_what_transformers_cannot_read_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "unheard_of")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"odd\.gguf: Transformers cannot read it: .*unheard_of"):
        convert(tmp_path / "odd.gguf", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["odd.gguf"]


def test_a_conversion_that_fails_midway_leaves_nothing(file, tmp_path, monkeypatch):
    def fail(self, folder):
        raise OSError("the disk is full")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", fail)
    with pytest.raises(OSError, match="full"):
        convert(file, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_directory_that_holds_something_is_left_alone(file, converted):
    before = sorted(converted.rglob("*"))
    with pytest.raises(ValueError, match="tiny exists; valid: a directory that is empty"):
        convert(file, converted)
    assert sorted(converted.rglob("*")) == before


def test_other_dtypes_are_refused(file, tmp_path):
    with pytest.raises(ValueError, match="dtype='int8'; valid: float32, bfloat16"):
        convert(file, tmp_path / "out", "int8")


def test_the_program_tells_bad_input_in_one_line(tmp_path):
    (tmp_path / "text.gguf").write_text("hello")
    arguments = [f"--gguf={tmp_path / 'text.gguf'}", f"--out={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "experiments.convert_gguf", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "text.gguf: not a whole GGUF file" in done.stderr
