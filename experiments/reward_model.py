"""Train a reward model on pairs, or go on with it.

python -m experiments.reward_model --config=FILE --workdir=DIR; the config's task is `pairs`.
"""

from grpo_jax.command_line import run_main


def main(config, workdir):
    from grpo_jax.reward_model import train  # imports JAX, which --help and bad configs need not

    train(config, workdir)


if __name__ == "__main__":
    run_main(main)
