"""Sample: python -m experiments.sample --workdir=DIR --prompt="347+589=" [--temperature=0.7 --n=4].

Asks the newest checkpoint of a run. Standard output has the completions alone, one after another.
"""

import sys

from absl import flags

from grpo_jax.command_line import run_main

PROMPT = flags.DEFINE_string("prompt", None, "the question, as the task writes it", required=True)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 is greedy", lower_bound=0.0)
MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens", None, "the longest completion (default: rollout.max_tokens)", lower_bound=1
)
N = flags.DEFINE_integer("n", 1, "how many completions", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "of the random draws at temperatures above 0")


def main(workdir):
    import jax  # --help and bad flags need not wait for it

    from experiments.checkpoint import load
    from grpo_jax.rollout.collect import encode_batch, texts
    from grpo_jax.rollout.sampler import sample
    from grpo_jax.sharding import put_batch, using
    from grpo_jax.tasks import Problem

    ex, params, step = load(workdir)
    c = ex.config
    problems = [Problem(PROMPT.value)]
    prompts = encode_batch(ex.tokenizer, problems, c.prompt_length, c.rollout.prompt_bucket)
    sampling = ex.sampling(
        temperature=TEMPERATURE.value, max_tokens=MAX_TOKENS.value or c.rollout.max_tokens
    )
    print(f"{workdir}, step {step}", file=sys.stderr)
    with using(ex.mesh):
        key = jax.random.key(SEED.value)
        prompts = put_batch(prompts, ex.mesh)
        out = sample(ex.model, params, prompts, key, sampling=sampling, group=N.value)
    for number, text in enumerate(texts(ex.tokenizer, *jax.device_get((out.tokens, out.mask)))[0]):
        print(text)
        if not out.finished[0, number]:
            print(f"completion {number + 1} was cut at {sampling.max_tokens}", file=sys.stderr)


if __name__ == "__main__":
    run_main(main, with_config=False)
