"""Group Relative Policy Optimization for language models, in JAX: the group is an axis."""
