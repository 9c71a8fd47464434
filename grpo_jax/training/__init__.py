"""The programs' own work: loops, stages, evaluation."""
