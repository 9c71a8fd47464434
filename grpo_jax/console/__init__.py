"""What a person at the terminal sees: progress, interrupts, errors on one line."""
