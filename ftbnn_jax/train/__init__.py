"""Optimisation, checkpoints and the training loop."""

from ftbnn_jax import extras

extras.require("etils", "flax", "optax", "orbax", "tensorboardX")
