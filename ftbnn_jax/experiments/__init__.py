"""The paper's experiments as commands: sets of runs, their tables and their figures."""

from ftbnn_jax import extras

extras.require("etils", "flax", "sklearn")
