"""The programs: python -m experiments.NAME."""

import sys

if sys.argv[:1] == ["-m"]:  # what Python has there while it looks for the program to run
    from grpo_jax.console import interrupts

    interrupts.leave_at_once()
