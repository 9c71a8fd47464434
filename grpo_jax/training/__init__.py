"""What programs do: the loop, its stages, evaluation."""
