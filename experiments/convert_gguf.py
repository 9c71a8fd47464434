"""Convert: python -m experiments.convert_gguf --gguf=FILE --out=DIR [--dtype=bfloat16].

Turns a GGUF file into a Hugging Face directory: weights, config, tokenizer and chat template.
"""

from pathlib import Path

from absl import flags

from grpo_jax.config.command_line import run_main
from grpo_jax.console.progress import checked, result_on_stdout

GGUF = flags.DEFINE_string("gguf", None, "the file to read", required=True)
OUT = flags.DEFINE_string("out", None, "the directory to write: empty or new", required=True)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the weights")


def main():
    from grpo_jax.models.gguf import convert

    result_on_stdout()
    checked()  # the file is, before the first word
    convert(Path(GGUF.value), Path(OUT.value), DTYPE.value)
    print(OUT.value)


if __name__ == "__main__":
    run_main(main, with_config=False, with_workdir=False)
