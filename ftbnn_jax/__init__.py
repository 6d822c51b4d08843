"""FTBNN in JAX: train 1-bit convolutional networks, count their budgets, pack them into bits."""

__version__ = "0.1.0"
