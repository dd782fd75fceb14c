"""What differs between tasks: loss, metrics, reading the answer, drawing it."""
