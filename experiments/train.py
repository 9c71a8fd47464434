"""Train an experiment, or resume its run.

python -m experiments.train --config=configs/<name>.py --workdir=DIR [--config.x=y ...]
"""

from grpo_jax.config.command_line import run_main
from grpo_jax.console.progress import importing


def main(config, workdir):
    with importing():  # JAX, which --help and bad configs need not
        from grpo_jax.training.rl import train
    train(config, workdir)


if __name__ == "__main__":
    run_main(main)
