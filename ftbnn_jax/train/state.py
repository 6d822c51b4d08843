"""Everything that a training step changes, as one pytree: what a checkpoint holds."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftbnn_jax import networks
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.errors import UserError


class TrainState(flax.struct.PyTreeNode):
    """The state of a run after `step` steps.

    Attributes:
      step: int32 scalar.
      params: float32 parameters, binary kernels as latent weights.
      collections: what else the network carries, by flax's names: `batch_stats`, the running statistics
        of the batch norms, and in a user's own network any other.
      opt_state: of the optimizer.
      sums: `loss` (float32), `correct` and `count` (int32), summed over the steps since metrics were
        last written. They are part of the state so that an interrupted run writes the same metrics.
      nonfinite_step: int32, the first step whose loss or gradient was not finite, or -1.
    """

    step: jax.Array
    params: Any
    collections: dict[str, Any]
    opt_state: Any
    sums: dict[str, jax.Array]
    nonfinite_step: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """The network's variables: `params` and the collections."""
        return {"params": self.params, **self.collections}

    def to_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint holds: the collections stand beside the parameters."""
        own = {name: getattr(self, name) for name in _FIELDS}
        return {**own, **self.collections}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainState":
        """Returns the state of which `to_dict` made `values`."""
        own = {name: values[name] for name in _FIELDS}
        return cls(collections=collections(values), **own)


_FIELDS = ("step", "params", "opt_state", "sums", "nonfinite_step")


def collections(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the collections among a network's variables, or in what `TrainState.to_dict` gives."""
    return {name: tree for name, tree in values.items() if name not in _FIELDS}


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

    Raises:
      UserError: a collection of the network's has the name of something else in a checkpoint.
    """
    images = jnp.zeros((1, config.image_size, config.image_size, channels))
    variables = networks.make(config).init(jax.random.key(config.seed), images)
    for name in variables:
        if name in _FIELDS and name != "params":
            raise UserError(
                f"its network has a collection {name!r}; checkpoints have something else of that name: "
                "take another one",
                config.network,
            )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        collections=collections(variables),
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
