"""How many seeds: the flag of programs that run each. They call flags.adopt_module_key_flags."""

from absl import flags

SEEDS = flags.DEFINE_integer(
    "seeds", None, "runs, with seeds 0, 1, ...", lower_bound=2, upper_bound=1000
)
