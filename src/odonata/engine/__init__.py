"""Training: the loop, checkpoints and exact resume, precision, distribution, progress and logs."""
