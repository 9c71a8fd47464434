"""Qwen2.5-0.5B learns to reason on GSM8K from rewards only, as R1-Zero did. Needs a GPU.

    pip install -e '.[math]'
    python -m experiments.train --config=configs/qwen_gsm8k.py --config.model.path=DIR \
        --config.task.path=DATA --workdir=runs/qwen_gsm8k

DIR is the Hugging Face directory of Qwen2.5-0.5B (the base model); DATA a folder with GSM8K's
train.jsonl and test.jsonl as published. R1-Zero's template, no cold start, Dr. GRPO; rewards for
the right answer and for the format. Not yet run.
"""

from grpo_jax.config import defaults


def get_config():
    config = defaults()
    config.model.path = "models/Qwen2.5-0.5B"
    config.model.dtype = "bfloat16"
    config.model.remat = "dots_no_batch"
    config.task.name = "gsm8k"
    config.task.path = "data/gsm8k"
    config.task.template = "r1_zero"
    config.rewards = {"accuracy": 1.0, "format": 0.2}
    config.overlong_prompts = "drop"
    config.prompt_length = 384
    config.rollout.prompts = 64
    config.rollout.group = 16
    config.rollout.max_tokens = 512
    config.rollout.stop = ("</answer>",)  # a base model would go on with another question
    config.rollout.prompt_bucket = 64
    config.steps = 300
    config.algorithm.preset = "dr_grpo"
    config.algorithm.dynamic_sampling_rounds = 1
    config.optimizer.learning_rate = 1e-6
    config.optimizer.warmup_steps = 10
    config.optimizer.accumulation = 16
    config.eval.every = 25
    config.eval.problems = 512
    config.checkpoint.every = 25
    return config
