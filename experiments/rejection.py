"""Rejection sampling: python -m experiments.rejection --workdir=RUN --out=DIR --samples=4.

Samples a run's newest checkpoint on training problems and keeps what is right: DIR/kept.jsonl is
a data set for the task jsonl, DIR/dropped.jsonl says which filter dropped each other sample, and
DIR/pairs.jsonl has kept and wrong ones of a problem, for the task pairs. The same command
resumes where it was cut off.
"""

from pathlib import Path

from absl import flags

from grpo_jax.config.command_line import run_main
from grpo_jax.console.progress import importing

OUT = flags.DEFINE_string("out", None, "the folder to write", required=True)
PROBLEMS = flags.DEFINE_integer("problems", 256, "training problems", lower_bound=1)
SAMPLES = flags.DEFINE_integer(
    "samples", 4, "completions of each", lower_bound=1, upper_bound=2**16
)
KEEP = flags.DEFINE_integer("keep", 1, "at most so many of a problem are kept", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "that they are drawn at", lower_bound=0.0)
JUDGES = flags.DEFINE_list("judges", [], "reward models' runs, where the task has no right answer")
FIRST = flags.DEFINE_integer("first", 0, "the place of the first problem", lower_bound=0)
LANGUAGE = flags.DEFINE_string("language", "", "keep only thoughts in this language, such as en")


def main(workdir):
    with importing():  # JAX, which --help and bad flags need not
        from grpo_jax.sharding import using
        from grpo_jax.training.loading import load
        from grpo_jax.training.rejection import Rule, reject

    ex, params, step = load(workdir)
    drawn = (PROBLEMS.value, SAMPLES.value, KEEP.value, TEMPERATURE.value)
    rule = Rule(*drawn, LANGUAGE.value, tuple(JUDGES.value), FIRST.value)
    with ex.rewarder(("accuracy",)) as rewarder, using(ex.mesh):
        counts = reject(ex, params, rewarder, rule, Path(OUT.value), f"{workdir}, step {step}")
    print(", ".join(f"{name} {n}" for name, n in sorted(counts.items())))


if __name__ == "__main__":
    run_main(main, with_config=False)
