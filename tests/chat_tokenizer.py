"""A small tokenizer with a chat template, as Hugging Face's files have it."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "the cat sat on the mat",
    "What is 12 + 34?",
    "<think>12 + 34 = 46</think>",
    "ä é 日本 🙂",
    "1\n\n2\n\n3\n\n4",
]
SPECIAL = ["<s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
TEMPLATE = """{{ bos_token }}
{%- for message in messages %}
{%- if message['role'] not in ['system', 'user', 'assistant'] %}
{{- raise_exception('no role ' + message['role']) }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def trained(*first: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """A byte-level BPE tokenizer that puts <s> before a text, which `first` splits first."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, words])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(LINES * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def save(folder: Path) -> None:
    """Write the files of such a tokenizer as Transformers itself does."""
    named = {"bos_token": "<s>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    PreTrainedTokenizerFast(tokenizer_object=trained(), **named).save_pretrained(folder)
