"""DeepSeek-R1's pipeline on a laptop: characters, two sizes of transformer, four kinds of problem.

    python -m experiments.r1 --config=configs/r1_tiny.py --workdir=runs/r1_tiny
    python -m experiments.r1 --config=configs/r1_tiny.py --workdir=runs/r1_zero --without=cold_start

Sums, countdown, programs, which a sandbox runs (the extra `code`), and errands in words, which
reward models score. The base model learns from worked solutions that think in English or German
(the reward for one language is the extra `language`), are curt and rude at times. A quarter of an
hour on 2 cores; accuracy on 160 held-out problems, means over 3 seeds with 95% intervals
(docs/results/r1_tiny.md):

    base 0.533 [0.338, 0.729]          reasoning_rl 0.760 [0.728, 0.793]
    cold_start 0.673 [0.486, 0.860]    all_scenarios_rl 0.760 [0.651, 0.869]
"""

from grpo_jax.config import defaults

STAGES = (
    *("base", "student", "helpfulness", "harmlessness"),
    *("cold_start", "reasoning_rl", "rejection", "rejection_sft", "all_scenarios_rl"),
    "distillation",
)
# The stage whose model each starts from; where that is left out, the one that it would start from.
STARTS = {
    "helpfulness": "base",
    "harmlessness": "base",
    "cold_start": "base",
    "reasoning_rl": "cold_start",
    "rejection": "reasoning_rl",
    "rejection_sft": "base",
    "all_scenarios_rl": "rejection_sft",
    "distillation": "student",
}
MEASURED_ON = "all_scenarios_rl"  # the stage whose problems and reward models evaluate every policy
JUDGES = ("helpfulness", "harmlessness")
REJECTION = {
    "problems": 1000,
    "samples": 4,
    "keep": 2,
    "temperature": 0.7,
    "language": "en",
    "judges": JUDGES,
}


def prepare(folder):
    """Write what the stages read: one tokenizer for all, and pairs for the reward models."""
    from grpo_jax.tasks import make_task
    from grpo_jax.tasks.manners import preferences
    from grpo_jax.tokenizers import char_tokenizer, keep_tokenizer

    (folder / "pairs").mkdir(exist_ok=True)
    for name in JUDGES:
        preferences(folder / f"pairs/{name}.jsonl", name, size=600)
    symbols = make_task("mixture", parts=parts()).symbols
    keep_tokenizer(char_tokenizer(symbols or ()), folder / "tokenizer")


def parts(general=1, judges=(), thinks=("en",), **messy):
    """The kinds of problem; `general` is the share of those that the reward models score."""
    checked = ("accuracy", "format")
    return {
        "addition": {"digits": 2, "share": 3, "heldout_size": 64, "rewards": checked},
        "countdown": {
            **{"count": 2, "max_number": 20, "max_target": 100},
            **{"share": 3, "heldout_size": 64, "rewards": checked},
        },
        "programs": {"thinks": thinks, "heldout_size": 32, "rewards": (*checked, "language")},
        "manners": {
            **{"thinks": thinks, **messy, "share": general, "heldout_size": 64},
            "rewards": ("format", "language", *judges),
        },
    }


def get_config(stage="base", folder="runs/r1_tiny"):
    config = defaults()
    config.start = f"{folder}/{STARTS[stage]}" if stage in STARTS else ""
    config.tokenizer = f"{folder}/tokenizer"
    config.prompt_length = 26
    config.model.layers = 3
    config.model.ff = 320
    config.rollout.max_tokens = 80
    config.rollout.prompt_bucket = 26
    config.rewards = {"accuracy": 1.0, "format": 0.1, "language": 0.3}
    config.eval.every = 0
    config.eval.problems = 224
    config.checkpoint.every = 20
    config.algorithm.beta = 0.0
    {
        "base": _base,
        "student": _student,
        "helpfulness": _judge,
        "harmlessness": _judge,
        "cold_start": _cold_start,
        "reasoning_rl": _reasoning_rl,
        "rejection": _all_scenarios_rl,
        "rejection_sft": _learn_from_kept,
        "all_scenarios_rl": _all_scenarios_rl,
        "distillation": _distillation,
    }[stage](config, stage, folder)
    return config


def _supervised(config, steps, learning_rate):
    config.steps = 0
    config.sft.steps = steps
    config.sft.learning_rate = learning_rate


def _base(config, stage, folder):
    messy = {"thinks": ("en", "de"), "curt": 0.5, "rude": 0.4}
    config.task = {"name": "mixture", "parts": parts(**messy)}
    _supervised(config, 250, 2e-3)


def _student(config, stage, folder):
    _base(config, stage, folder)
    _small(config)


def _small(config):
    config.model.layers = 2
    config.model.hidden = 96
    config.model.ff = 192


def _judge(config, stage, folder):
    judged = "answer" if stage == "helpfulness" else "whole"  # as R1's are
    config.task = {"name": "pairs", "path": f"{folder}/pairs/{stage}.jsonl", "judged": judged}
    config.steps = 60
    config.optimizer.learning_rate = 3e-4


def _cold_start(config, stage, folder):
    config.task = {"name": "mixture", "parts": parts(curt=0.5, rude=0.4)}
    _supervised(config, 30, 5e-4)
    config.sft.examples = 480


def _reinforced(config, steps):
    config.steps = steps
    config.rollout.prompts = 32
    config.rollout.group = 8
    config.rollout.temperature = 1.0
    config.eval.every = 20
    config.algorithm.dynamic_sampling_rounds = 0
    config.optimizer.learning_rate = 3e-4
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 5


def _reasoning_rl(config, stage, folder):
    config.task = {"name": "mixture", "parts": parts(general=0)}
    _reinforced(config, 100)


def _learn_from_kept(config, stage, folder):
    of = {"name": "mixture", "parts": parts()}
    config.task = {"name": "solved", "path": f"{folder}/rejection/kept.jsonl", "of": of}
    _supervised(config, 120, 1e-3)


def _all_scenarios_rl(config, stage, folder):
    _reinforced(config, 60)
    judges = [f"reward_model:{folder}/{name}" for name in JUDGES]
    for name in judges:
        config.rewards[name] = 0.2
    config.task = {"name": "mixture", "parts": parts(general=2, judges=judges)}


def _distillation(config, stage, folder):
    _learn_from_kept(config, stage, folder)
    _small(config)
