"""FTBNN in JAX: train 1-bit convolutional networks, count their budgets, pack them into bits."""

import sys

from ftbnn_jax import command, moved

__version__ = "0.1.0"

# What Python says while it looks for the module of `python -m`: this process is one of the commands.
if sys.argv[0] == "-m":
    command.begin()
    moved.check()
