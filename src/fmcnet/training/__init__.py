"""Training: the loop, one step of it, optimisers, checkpoints, logs."""
