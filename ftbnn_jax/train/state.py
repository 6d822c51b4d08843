"""Everything that a training step changes, as one pytree: what a checkpoint holds."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.nn import resnet


class TrainState(flax.struct.PyTreeNode):
    """The state of a run after `step` steps.

    Attributes:
      step: int32 scalar.
      params: float32 parameters, binary kernels as latent weights.
      batch_stats: running statistics of the batch norms.
      opt_state: of the optimizer.
      sums: `loss` (float32), `correct` and `count` (int32), summed over the steps since metrics were
        last written. They are part of the state so that an interrupted run writes the same metrics.
      nonfinite_step: int32, the first step whose loss or gradient was not finite, or -1.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    sums: dict[str, jax.Array]
    nonfinite_step: jax.Array


def make_model(config: TrainConfig) -> resnet.ResNet:
    """Returns the flax module of a config."""
    return resnet.make(config.model, config.num_classes, config.compute_dtype, config.remat)


def zero_sums() -> dict[str, jax.Array]:
    """Returns the metric sums before the first step."""
    zero = np.zeros((), np.int32)
    return {"loss": np.zeros((), np.float32), "correct": zero, "count": zero}


def init(config: TrainConfig, channels: int, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step; a pure function of `config.seed`.

    Args:
      config: gives model, image size and seed.
      channels: of the images.
      optimizer: its state is initialised.
    """
    images = jnp.zeros((1, config.image_size, config.image_size, channels))
    variables = make_model(config).init(jax.random.key(config.seed), images)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
        sums=jax.tree.map(jnp.asarray, zero_sums()),
        nonfinite_step=jnp.full((), -1, jnp.int32),
    )


def all_finite(tree: Any) -> jax.Array:
    """Whether every number is finite: whether sums over all but the last axis are, which cost little."""
    sums = [jnp.sum(leaf, tuple(range(leaf.ndim - 1))) for leaf in jax.tree.leaves(tree)]
    return jnp.stack([jnp.isfinite(s).all() for s in sums]).all()


# These two are compiled once for all runs of a network.
is_finite = jax.jit(all_finite)
copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
