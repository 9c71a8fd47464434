"""Train a reward model on pairs, or resume its run.

python -m experiments.reward_model --config=FILE --workdir=DIR; the config's task is `pairs`.
"""

from grpo_jax.config.command_line import run_main
from grpo_jax.console.progress import importing


def main(config, workdir):
    with importing():  # JAX, which --help and bad configs need not
        from grpo_jax.training.reward_model import train
    train(config, workdir)


if __name__ == "__main__":
    run_main(main)
