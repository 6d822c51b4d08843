"""Activation modules: the functions of `ops.activations` with their slopes as parameters.

`slopes(features)` makes or returns a module's parameters, for whoever calls the function itself.
"""

import jax

from ftbnn_jax import extras
from ftbnn_jax.ops import activations

with extras.named():
    from flax import linen as nn


class Identity(nn.Module):
    """No activation."""

    def slopes(self, features: int) -> tuple[jax.Array, ...]:
        return ()

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class ReLU(nn.Module):
    """`max(x, 0)`."""

    def slopes(self, features: int) -> tuple[jax.Array, ...]:
        return ()

    def __call__(self, x: jax.Array) -> jax.Array:
        return activations.relu(x)


class HardTanh(nn.Module):
    """`min(max(x, -1), 1)`."""

    def slopes(self, features: int) -> tuple[jax.Array, ...]:
        return ()

    def __call__(self, x: jax.Array) -> jax.Array:
        return activations.hardtanh(x)


class PReLU(nn.Module):
    """Learnt slope for negative inputs, one per channel (He et al., 2015).

    Attributes:
      start: the slope before training.
    """

    start: float = 0.25

    @nn.compact
    def slopes(self, features: int) -> tuple[jax.Array, ...]:
        return (self.param("negative_slope", nn.initializers.constant(self.start), (features,)),)

    def __call__(self, x: jax.Array) -> jax.Array:
        return activations.prelu(x, *self.slopes(x.shape[-1]))


class FPReLU(nn.Module):
    """Learnt slopes on both sides, one pair per channel (Fig. 3, left).

    Attributes:
      start: the negative and the positive slope before training.
    """

    start: tuple[float, float] = (1.0, 1.0)

    @nn.compact
    def slopes(self, features: int) -> tuple[jax.Array, ...]:
        names = ("negative_slope", "positive_slope")
        return tuple(
            self.param(name, nn.initializers.constant(start), (features,))
            for name, start in zip(names, self.start, strict=True)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return activations.fprelu(x, *self.slopes(x.shape[-1]))


FUNCTIONS = {
    "none": lambda x: x,
    "relu": activations.relu,
    "hardtanh": activations.hardtanh,
    "prelu": activations.prelu,
    "fprelu": activations.fprelu,
}
MODULES = {
    "none": Identity,
    "relu": ReLU,
    "hardtanh": HardTanh,
    "prelu": PReLU,
    "fprelu": FPReLU,
}
