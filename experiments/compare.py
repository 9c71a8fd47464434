"""Compare variants: python -m experiments.compare --config=configs/grpo_vs_ppo.py --seeds=5.

The config file's VARIANTS names what its get_config(name) gives. Every variant runs with every
seed, five of them by default, each run in a separate process and folder, DIR/<variant>/seed<n>: one
that is there is resumed, so a comparison can be stopped and resumed, and given more seeds. Where
the file has a START, that is run first, and all variants start from its run with their seed. Writes
DIR/comparison.md, the tables, DIR/comparison.png, accuracy against updates and seconds, and
DIR/comparison.json. --workdir is runs/<config name> by default.
--pass_at=32 adds what is right among 32 completions a problem, of every variant and of START.
"""

from absl import flags

from experiments import seeds, stages
from grpo_jax.config.command_line import run_main
from grpo_jax.config.load import load_module
from grpo_jax.console.progress import importing
from grpo_jax.training.variants import (
    check_evaluated,
    chosen,
    cost_of,
    run_folder,
    run_variant,
    variants,
)

flags.adopt_module_key_flags(stages)
flags.adopt_module_key_flags(seeds)
CHOSEN = flags.DEFINE_list("variants", [], "names to compare instead of the file's VARIANTS")
PASS_AT = flags.DEFINE_integer(
    "pass_at", 0, "the largest k of pass@k and maj@k", lower_bound=0, upper_bound=2**16
)
WRITTEN = ("comparison.md", "comparison.png", "comparison.json")  # in --workdir
TARGET = flags.DEFINE_float("target", 0.9, "accuracy whose time is reported", lower_bound=0.0)


def main():
    file, folder = stages.config_and_folder()
    names = chosen(CHOSEN.value, variants(file))
    start = getattr(load_module(file), "START", None)
    every = range(seeds.SEEDS.value or 5)
    check_evaluated(file, names)
    stages.check_free(folder, WRITTEN, [run_folder(folder, n, s) for n in names for s in every])
    for seed in every:
        for name in (*([start] if start else []), *names):
            run_variant(file, name, seed, folder, None if name == start else start)
    with importing():
        from grpo_jax.training.comparison import write_comparison

    asked = (*([start] if start and PASS_AT.value else []), *names)
    runs = {name: [run_folder(folder, name, s) for s in every] for name in asked}
    costs = {name: cost_of(file, name) for name in names}
    write_comparison(folder, runs, costs, TARGET.value, PASS_AT.value)
    return 0


if __name__ == "__main__":
    run_main(main, with_config=False, with_workdir=False)
