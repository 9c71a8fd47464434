"""Iterative GRPO: python -m experiments.iterate --config=configs/iterative.py --iterations=2.

Algorithm 1 of DeepSeekMath (2402.03300). An iteration samples pairs of right and wrong completions
from the policy, trains the reward model on them and a share of earlier ones (replay), and trains
the policy on that model's scores. Its reference is the policy that the iteration starts
from, or under adapters the model without them.

The config file's get_config(name) gives 'policy', 'policy:RUN', rewarded by `reward_model:RUN`, and
'reward_model:RUN', whose task is `pairs`, with a `path` and a `replay`, and which may start from
the policy in RUN; later ones start from the reward model before.

    DIR/iteration0/policy           the policy before: a cold start, or what its config starts from
    DIR/iteration<n>/pairs          as experiments.rejection leaves it
    DIR/iteration<n>/reward_model   a run
    DIR/iteration<n>/policy         a run

Each is made in a separate process, and one that is there is resumed: the same command continues
where it was cut off, or adds iterations. DIR is --workdir, runs/<config name> by default.
"""

from absl import flags

from experiments import stages
from grpo_jax.config.command_line import run_main

flags.adopt_module_key_flags(stages)
ITERATIONS = flags.DEFINE_integer("iterations", 2, "how many", lower_bound=1)
PROBLEMS = flags.DEFINE_integer(
    "problems", 256, "new problems that an iteration's pairs are of", lower_bound=1
)
SAMPLES = flags.DEFINE_integer(
    "samples", 8, "completions of each", lower_bound=2, upper_bound=2**16
)


def main():
    file, folder = stages.config_and_folder()
    from grpo_jax.training.iterations import iterate, table

    for number in range(ITERATIONS.value + 1):
        iterate(file, folder, number, PROBLEMS.value, SAMPLES.value)
    print("\n".join(table(folder, ITERATIONS.value)))


if __name__ == "__main__":
    run_main(main, with_config=False, with_workdir=False)
