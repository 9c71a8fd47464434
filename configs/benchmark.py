"""Any benchmark in JSON lines, evaluated as DeepSeek-R1 was (2501.12948, 3): nothing is trained.

    python -m experiments.evaluate --config=configs/benchmark.py --config.task.path=FILE \
        --workdir=RUN [--against=DIR,DIR]

FILE has an object a line with `prompt` and `answer` (or as --config.task.prompt=question says). 64
samples a problem at temperature 0.6 and top_p 0.95: pass@1 is their mean, maj@64 what the paper
calls cons@64. RUN and DIR are runs or one's checkpoints/STEP, DIR also a Hugging Face directory, as
is --config.model.path=DIR, which does without a RUN. For models that do not chat there is
--config.task.template=none, for other kinds of answer --config.task.reward=NAME.
"""

from grpo_jax.config import defaults


def get_config():
    config = defaults()
    config.task = {
        "name": "jsonl",
        "path": "benchmark.jsonl",
        "heldout_fraction": 1.0,
        "prompt": "prompt",
        "answer": "answer",
        "reward": "math_verify",
        "template": "boxed",
    }
    config.model.dtype = "bfloat16"
    config.prompt_length = 2048
    config.rollout.max_tokens = 4096
    config.eval.problems = 10_000
    config.eval.samples = 64
    config.eval.temperature = 0.6
    config.eval.top_p = 0.95
    return config
