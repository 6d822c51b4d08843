"""Activation modules: the functions of `ops.activations` with their slopes as parameters."""

import jax
from flax import linen as nn

from ftbnn_jax.ops import activations


class Identity(nn.Module):
    """No activation."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class ReLU(nn.Module):
    """`max(x, 0)`."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return activations.relu(x)


class PReLU(nn.Module):
    """Learnt slope for negative inputs, one per channel, 0.25 at the start (He et al., 2015)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        slope = self.param("negative_slope", nn.initializers.constant(0.25), x.shape[-1:])
        return activations.prelu(x, slope)


class FPReLU(nn.Module):
    """Learnt slopes on both sides, one pair per channel, both 1 at the start (Fig. 3, left)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        negative = self.param("negative_slope", nn.initializers.ones, x.shape[-1:])
        positive = self.param("positive_slope", nn.initializers.ones, x.shape[-1:])
        return activations.fprelu(x, negative, positive)


MODULES = {"none": Identity, "relu": ReLU, "prelu": PReLU, "fprelu": FPReLU}
