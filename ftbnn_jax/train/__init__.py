"""Input, optimisation, checkpoints and the training loop."""
