"""Distillation beside reinforcement learning on the small model, as in R1's table 6 (2501.12948).

    python -m experiments.r1 --config=configs/r1_distillation.py --seeds=5

Two-digit sums. The student starts from one checkpoint twice: GRPO on the student itself, or
fine-tuning on what was right among samples of a larger teacher, which GRPO has trained. What was
found is in docs/results/distillation.md.
"""

from configs.quick import get_config as quick

STAGES = ("teacher", "teacher_rl", "rejection", "student", "student_rl", "distillation")
STARTS = {
    "teacher_rl": "teacher",
    "rejection": "teacher_rl",
    "student_rl": "student",
    "distillation": "student",
}
MEASURED_ON = "teacher_rl"
JUDGES = ()
REJECTION = {"problems": 1000, "samples": 4, "keep": 2, "temperature": 0.7}


def prepare(folder):
    """Do nothing: only the task's own problems are read."""


def get_config(stage="teacher", folder="runs/r1_distillation"):
    config = quick()
    config.start = f"{folder}/{STARTS[stage]}" if stage in STARTS else ""
    config.algorithm.dynamic_sampling_rounds = 0
    config.optimizer.learning_rate = 2.5e-4
    config.eval.every = 0
    config.steps = 150
    if stage in ("student", "student_rl", "distillation"):
        config.model.layers, config.model.hidden, config.model.ff = 1, 96, 192
        config.sft.steps, config.sft.stop_accuracy = 400, 0.2
    if stage in STARTS:
        config.sft.steps = 0
    if stage in ("teacher", "student", "distillation"):
        config.steps = 0
    if stage == "distillation":
        of = {"name": "addition", "digits": 2, "heldout_size": 256}
        config.task = {"name": "solved", "path": f"{folder}/rejection/kept.jsonl", "of": of}
        config.sft.steps = 150
        config.sft.stop_accuracy = 1.0
        config.sft.learning_rate = 1e-3
    return config
