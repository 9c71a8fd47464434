"""GGUF files turned into Hugging Face directories, by Transformers' own reader and writer."""

from pathlib import Path
from typing import Any

from grpo_jax.console.progress import doing
from grpo_jax.files import at_home, replacing

DTYPES = ("float32", "bfloat16")


def convert(file: Path, out: Path, dtype: str = "float32") -> None:
    """Write the model and the tokenizer of a GGUF file as the Hugging Face directory `out`.

    Weights are de-quantised and stored as `dtype`, "float32" or "bfloat16". The directory appears
    whole or not at all. Needs the extra `gguf`.

    ValueError where `out` holds something already, where `file` is not a whole GGUF file, and where
    Transformers cannot read what it holds; FileNotFoundError where there is none.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}; valid: {', '.join(DTYPES)}")
    out = at_home(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} exists; valid: a directory that is empty or not there yet")
    split = _text_split(file)
    with replacing(out) as made:
        with doing(f"reading {file} with Transformers"):
            model, tokenizer = _load(file, dtype)
        if split == "smollm":
            _isolate_digits(tokenizer)
        with doing(f"writing {out}"):
            model.save_pretrained(made)
            tokenizer.save_pretrained(made)


def _text_split(file: Path) -> str | None:
    """How the tokenizer splits text into words, by llama.cpp's name; ValueError for a bad file."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ValueError(f"GGUF files need: pip install 'grpo_jax[gguf]' ({error})") from error
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; valid: a GGUF file")
    try:
        field = GGUFReader(file).get_field("tokenizer.ggml.pre")  # maps every tensor as well
    except (ValueError, KeyError, IndexError) as error:  # whatever a cut-off file runs it into
        raise ValueError(f"{file}: not a whole GGUF file: {error}") from error
    return None if field is None else field.contents()


def _load(file: Path, dtype: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=getattr(torch, dtype),
            quantization_config=GgufConfig(dequantize=True),  # or it refuses to be saved
        )
    except ValueError as error:
        raise ValueError(f"{file}: Transformers cannot read it: {error}") from error
    return model, tokenizer


def _isolate_digits(tokenizer: Any) -> None:
    """Make each digit a separate word, as SmolLM's tokenizer does.

    Transformers 5.24 splits text as GPT-2 does where it does not know a file's way, and SmolLM's it
    does not: "\\n\\n1" would become three tokens instead of two.
    """
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
