"""Names on values of the traced program, for whoever reads the program: they cost nothing to run.

A mark is JAX's own `checkpoint_name`: the identity, gone after compilation. `ftbnn_jax.budget` counts
by it what arithmetic alone does not show (that a multiplication and an addition are a batch norm), and
a `jax.checkpoint` policy can choose by it what the backward pass keeps.
"""

import jax
from jax.ad_checkpoint import checkpoint_name

BATCH_NORM = "ftbnn_batch_norm"
ACTIVATION = "ftbnn_activation"
SCALING = "ftbnn_scaling"


def mark(x: jax.Array, name: str) -> jax.Array:
    """Returns `x` itself, called `name` in the traced program."""
    return checkpoint_name(x, name)
