"""The learner: advantages, the update, and the state that it changes."""
