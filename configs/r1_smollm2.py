"""DeepSeek-R1's pipeline from SmolLM2-135M-Instruct: hours on a CPU, minutes on a GPU.

    make smollm2-model
    python -m experiments.r1 --config=configs/r1_smollm2.py --workdir=runs/r1_smollm2
    python -m experiments.train --config=configs/r1_smollm2.py --workdir=runs/cold_start

The stages of `r1_tiny.py`, from the published weights and with their chat template, on sums, word
problems, programs and errands. The student is the published model again, of which only adapters
learn. On one H100, accuracy on 165 held-out problems with 95% intervals, one run of seed 0, cut off
after 7 minutes (its update took 8 micro-batches, and programs ran one after another):

    cold_start    0.697 [0.623, 0.762]
    reasoning_rl  0.842 [0.779, 0.890] after 40 of 100 steps, 0.897 [0.841, 0.935] after 80

All stages would take about 12 minutes at its speed. On 2 cores a step of RL takes 80 s, one of
fine-tuning 21 s, all of it about 8 hours and 14 GB.
"""

import jax

from configs import r1_tiny
from grpo_jax.config import defaults
from grpo_jax.tasks.manners import preferences

STAGES = tuple(stage for stage in r1_tiny.STAGES if stage not in ("base", "student"))
STARTS = {k: v for k, v in r1_tiny.STARTS.items() if v in STAGES}
MEASURED_ON = r1_tiny.MEASURED_ON
JUDGES = r1_tiny.JUDGES
REJECTION = r1_tiny.REJECTION
IN_TAGS = " Think between <think> and </think>, then answer between <answer> and </answer>."
SAYS = {
    "addition": "What is {prompt}?" + IN_TAGS,
    "word_problems": "{prompt}" + IN_TAGS,
    "programs": "Write a Python function in one line, {prompt}" + IN_TAGS,
    "manners": "Say it kindly: {prompt}" + IN_TAGS,
}


def prepare(folder):
    """Write the pairs that the reward models learn from."""

    def form(prompt):
        return [{"role": "user", "content": SAYS["manners"].replace("{prompt}", prompt)}]

    (folder / "pairs").mkdir(exist_ok=True)
    for name in r1_tiny.JUDGES:
        preferences(folder / f"pairs/{name}.jsonl", name, 2000, form)


def parts(general, rewards):
    """The kinds of problem, put to a chat model; `general` is the share of errands."""
    kinds = {
        "addition": {"name": "addition", "digits": 3, "heldout_size": 64},
        "word_problems": {"name": "word_problems", "template": "tags", "heldout_size": 64},
        "programs": {"name": "programs", "heldout_size": 48},
        "manners": {"name": "manners", "heldout_size": 64},
    }
    worded = {k: {"name": "framed", "of": of, "says": SAYS[k]} for k, of in kinds.items()}
    worded["manners"] |= {"share": general, "rewards": rewards}
    return worded


def get_config(stage="cold_start", folder="runs/r1_smollm2"):
    config = r1_tiny.get_config(stage, folder)
    config.start = f"{folder}/{STARTS[stage]}" if stage in STARTS else ""
    config.tokenizer = "char"  # so the model's own
    config.model = defaults().model
    config.model.path = "models/SmolLM2-135M-Instruct"
    config.model.dtype = "bfloat16"
    accelerator = jax.default_backend() != "cpu"
    config.model.scan_layers = accelerator  # compiled in less time; a CPU runs them more slowly
    config.prompt_length = 128
    config.rollout.max_tokens = 96
    config.rollout.prompt_bucket = 128  # one length, so each program is compiled once
    if config.task.name == "solved":
        tiny = config.task.of.parts.manners
        config.task.of.parts = parts(tiny.share, tiny.rewards)
    elif config.task.name == "mixture":
        tiny = config.task.parts.manners
        config.task.parts = parts(tiny.share, tiny.rewards)
    config.sft.batch = 32
    config.sft.steps *= 2
    config.sft.learning_rate = 1e-4
    config.optimizer.learning_rate = 3e-5
    if stage == "distillation":
        config.model.lora.rank = 16
        config.sft.learning_rate = 3e-4
    config.rollout.prompts = 16
    config.optimizer.accumulation = 2 if accelerator else 8  # 13 GB there, few kernels
    config.eval.every *= 2
    return config
