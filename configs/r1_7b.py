"""DeepSeek-R1's pipeline for a model of 7 billion parameters on a mesh. Not yet run.

    pip install -e '.[math,code,language]'
    python -m experiments.r1 --config=configs/r1_7b.py --workdir=runs/r1_7b
    python -m experiments.train --config=configs/r1_7b.py --workdir=runs/cold_start

From Qwen2.5-7B (the base model) on 8 accelerators; the student is Qwen2.5-1.5B. DATA holds
cold_start.jsonl (prompt, solution), gsm8k/ and math/ as published, code.jsonl (prompt, cases),
general.jsonl (prompt, answer null, and a solution) and pairs/ of helpfulness.jsonl and
harmlessness.jsonl (prompt, chosen, rejected). Learning rates, group and lengths are R1's where it
states them.
"""

from configs import r1_tiny
from grpo_jax.config import defaults

STAGES = tuple(stage for stage in r1_tiny.STAGES if stage not in ("base", "student"))
STARTS = {k: v for k, v in r1_tiny.STARTS.items() if v in STAGES}
MEASURED_ON = r1_tiny.MEASURED_ON
JUDGES = r1_tiny.JUDGES
REJECTION = r1_tiny.REJECTION | {"problems": 100_000, "temperature": 1.0}
DATA = "data/r1"


def prepare(folder):
    """Do nothing: the data are there."""


def _unjudged(name):
    """The task of a file without right answers: accuracy abstains."""
    path = f"{DATA}/{name}.jsonl"
    return {"name": "jsonl", "path": path, "template": "r1_zero", "unanswered": "keep"}


def parts(general, rewards):
    """The kinds of problem; `general` is the share of those without a right answer."""
    chat = {"template": "r1_zero"}
    general_kind = {**_unjudged("general"), "share": general}
    return {
        "gsm8k": {"path": f"{DATA}/gsm8k", **chat},
        "math": {"path": f"{DATA}/math", "share": 2, **chat},
        "code": {"name": "jsonl", "path": f"{DATA}/code.jsonl", "reward": "code", **chat},
        "general": general_kind | {"rewards": rewards},
    }


def get_config(stage="cold_start", folder="runs/r1_7b"):
    config = r1_tiny.get_config(stage, folder)
    config.start = f"{folder}/{STARTS[stage]}" if stage in STARTS else ""
    config.tokenizer = "char"  # so the model's own
    config.model = defaults().model
    size = "1.5B" if stage == "distillation" else "7B"
    config.model.update(path=f"models/Qwen2.5-{size}", dtype="bfloat16", scan_layers=True)
    config.model.remat = "dots_no_batch"
    config.mesh.update(fsdp=8)
    config.overlong_prompts = "drop"
    config.prompt_length = 1024
    config.rollout.update(prompts=512, group=16, max_tokens=8192, prompt_bucket=128)
    config.rollout.temperature = 0.7 if stage == "all_scenarios_rl" else 1.0
    if stage == "cold_start":
        config.task = _unjudged("cold_start")
        config.sft.update(steps=300, batch=32, examples=0, learning_rate=1e-5)
    elif config.task.name == "solved":
        tiny = config.task.of.parts.manners
        config.task.of.parts = parts(tiny.share, tiny.rewards)
        config.sft.update(steps=6000, batch=32, learning_rate=1e-5)
    elif config.task.name == "pairs":
        config.task.path = f"{DATA}/pairs/{stage}.jsonl"
        config.steps, config.rollout.prompts = 1000, 64
    else:
        tiny = config.task.parts.manners
        config.task.parts = parts(tiny.share, tiny.rewards)
        config.steps = 106 if stage == "all_scenarios_rl" else 650  # of 16 updates each
        config.algorithm.preset = "grpo_r1"
        config.algorithm.beta = 0.001
        config.optimizer.update(learning_rate=3e-6, schedule="constant", warmup_steps=20)
        config.optimizer.accumulation = 4
        config.checkpoint.every = 20
    config.sft.warmup_steps = 20
    return config
