"""Sample: python -m experiments.sample --model=DIR --prompt="347+589=" [--temperature=0.7 --n=4].

Samples from the newest checkpoint of a run, or from a Hugging Face directory. Standard output has
only the completions, one after another.
"""

import dataclasses
import json
import sys
from pathlib import Path

from absl import flags

from grpo_jax.config.command_line import run_main
from grpo_jax.console.progress import checked, importing, result_on_stdout, say

MODEL = flags.DEFINE_string("model", None, "a run's folder, or a Hugging Face directory")
WORKDIR = flags.DEFINE_string("workdir", None, "a run's folder; the same as --model")
PROMPT = flags.DEFINE_string("prompt", None, "the question, as the task writes it", required=True)
CHAT = flags.DEFINE_boolean("chat", False, "the prompt is a user's message, in the chat template")
CHAT_TEMPLATE_KWARGS = flags.DEFINE_string(
    "chat_template_kwargs", "{}", 'for the chat template, as JSON: {"enable_thinking": false}'
)
STOP = flags.DEFINE_multi_string(
    "stop", None, "a text that ends a completion; repeatable (default: the run's)"
)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 is greedy", lower_bound=0.0)
MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", None, "the longest completion (default: the run's, or 256)", lower_bound=1
)
N = flags.DEFINE_integer("n", 1, "how many completions", lower_bound=1, upper_bound=2**16)
SEED = flags.DEFINE_integer(
    "seed",
    0,
    "of the random draws at temperatures above 0",
    lower_bound=0,
    upper_bound=2**32 - 1,
)


def main():
    result_on_stdout()
    with importing():  # JAX, which --help and bad flags need not
        from grpo_jax.config.checks import check_stop
        from grpo_jax.tokenizers import prompt_ids
        from grpo_jax.training.asking import MAX_TOKENS as DEFAULT_TOKENS
        from grpo_jax.training.asking import sample
        from grpo_jax.training.experiment import with_kwargs
        from grpo_jax.training.loading import load_model

    model = load_model(Path(_folder()))
    tokenizer = with_kwargs(model.tokenizer, _given(), "--chat_template_kwargs")
    prompt = [{"role": "user", "content": PROMPT.value}] if CHAT.value else PROMPT.value
    if STOP.value is not None:
        check_stop(STOP.value, "--stop")
    prompt_ids(tokenizer, prompt)  # which refuses what it cannot encode
    checked()
    say(model.origin)
    found = sample(
        dataclasses.replace(model, tokenizer=tokenizer),
        [prompt],
        n=N.value,
        temperature=TEMPERATURE.value,
        max_tokens=MAX_TOKENS.value,
        stop=STOP.value,
        seed=SEED.value,
    )
    limit = MAX_TOKENS.value or model.max_tokens or DEFAULT_TOKENS
    for number, text in enumerate(found.texts[0]):
        print(text)
        if not found.finished[0, number]:
            print(f"completion {number + 1} was cut at {limit}", file=sys.stderr)


def _given() -> dict:
    """What --chat_template_kwargs says."""
    from grpo_jax.config.checks import check_chat
    from grpo_jax.errors import UsageError

    text = CHAT_TEMPLATE_KWARGS.value
    try:
        given = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--chat_template_kwargs={text}: not JSON: {error}") from error
    if not isinstance(given, dict):
        raise UsageError(f'--chat_template_kwargs={text}; valid: {{"enable_thinking": false}}')
    check_chat(given, "--chat_template_kwargs")
    if given and not CHAT.value:
        raise UsageError("--chat_template_kwargs: a text prompt has no template; valid: --chat")
    return given


def _folder() -> str:
    from grpo_jax.errors import UsageError

    if (MODEL.value is None) == (WORKDIR.value is None):
        raise UsageError("--model=DIR is needed: a run's folder, or a Hugging Face directory")
    return MODEL.value or WORKDIR.value or ""


if __name__ == "__main__":
    run_main(main, with_config=False, with_workdir=False)
