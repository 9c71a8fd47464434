"""A pretrained model learns GSM8K: a cold start on its worked solutions, then GRPO. Needs a GPU.

    pip install -e '.[math]'
    python -m experiments.train --config=configs/gsm8k.py --config.model.path=DIR \
        --config.task.path=DATA --workdir=runs/gsm8k

DIR is a Hugging Face directory with a chat template, such as models/SmolLM2-135M-Instruct
(make smollm2-model); DATA a folder with GSM8K's train.jsonl and test.jsonl as published
(https://github.com/openai/grade-school-math). At the end, all 1,319 test problems, greedy and
maj@8: python -m experiments.evaluate --workdir=runs/gsm8k --problems=1319 --samples=8
Not yet run.
"""

from grpo_jax.config import defaults


def get_config():
    config = defaults()
    config.model.path = "models/SmolLM2-135M-Instruct"
    config.model.dtype = "bfloat16"
    config.model.remat = "dots_no_batch"
    config.task.name = "gsm8k"
    config.task.path = "data/gsm8k"
    config.task.template = "boxed"
    config.rewards = {"accuracy": 1.0}
    config.overlong_prompts = "drop"
    config.prompt_length = 256
    config.rollout.prompts = 64
    config.rollout.group = 16
    config.rollout.max_tokens = 320
    config.rollout.prompt_bucket = 64
    config.sft.steps = 350
    config.sft.batch = 64
    config.sft.learning_rate = 1e-5
    config.steps = 300
    config.algorithm.preset = "dapo"
    config.algorithm.dynamic_sampling_rounds = 1
    config.optimizer.learning_rate = 3e-6
    config.optimizer.warmup_steps = 10
    config.optimizer.accumulation = 8
    config.eval.every = 50
    config.eval.problems = 512
    config.checkpoint.every = 50
    return config
