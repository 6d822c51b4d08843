"""Batch normalisation over all axes but the last, in training form and folded for inference.

Training graph and packed runtime share `fold` and `apply_folded`; given the same folded numbers, a value
that is exactly 0 in one is exactly 0 in the other.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ftbnn_jax.ops.marks import BATCH_NORM, mark


def fold(
    scale: jax.Array,
    bias: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    epsilon: float,
    input_scale: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Turns trained batch normalisation into one multiplication and one addition per channel.

    Args:
      scale: float32 `[C]`, and so are the next three.
      bias: trained offset.
      mean: running mean.
      variance: running variance.
      epsilon: added to the variance.
      input_scale: `[C]`, what the input would be multiplied with before the norm; folded in as well.

    Returns:
      `(a, b)`, float32 `[C]` each, with `a = scale / sqrt(variance + epsilon)`, `b = bias - mean * a`;
      `a * input_scale` in the place of the former where an input scale is given.
    """
    multiplier = scale / jnp.sqrt(variance + epsilon)
    offset = bias - mean * multiplier
    return (multiplier if input_scale is None else multiplier * input_scale), offset


def apply_folded(x: jax.Array, multiplier: jax.Array, offset: jax.Array) -> jax.Array:
    """Returns `x * multiplier + offset`, float32; `x` is `[..., C]`, the others `[C]`."""
    return mark(x.astype(jnp.float32) * multiplier + offset, BATCH_NORM)


class Folded(NamedTuple):
    """`apply_folded` with all but `x` filled in: a function that is a pytree of its arrays.

    Attributes:
      multiplier: as `fold` returns it, and so is the other.
      offset: what is added.
    """

    multiplier: jax.Array
    offset: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns float32 of the shape of `x`."""
        return apply_folded(x, *self)


def statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and biased variance of each channel, which carry no gradient.

    Under `jax.jit` over a batch sharded on several devices, they are the whole batch's.

    Args:
      x: `[..., C]`, any floating point dtype; computed in float32.

    Returns:
      `(mean, variance)`, float32 `[C]` each.
    """
    x = jax.lax.stop_gradient(x.astype(jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    # One pass over x instead of two; rounding can leave a tiny negative, hence the maximum.
    return mean, jnp.maximum(jnp.mean(jnp.square(x), axes) - jnp.square(mean), 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def normalize(
    x: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
) -> jax.Array:
    """Normalises by the batch's own statistics (Ioffe & Szegedy, 2015).

    The gradient of `x` is that through its statistics as well. It takes `x` and the incoming gradient
    twice, where JAX's own would have `x - mean` kept too.

    Args:
      x: `[..., C]`, any floating point dtype; computed in float32.
      mean: of `x`, float32 `[C]`, and so are the next three.
      variance: of `x`.
      scale: of the normalised numbers.
      bias: added to them.
      epsilon: added to the variance.

    Returns:
      float32, of the shape of `x`.
    """
    y = (x.astype(jnp.float32) - mean) * (scale / jnp.sqrt(variance + epsilon)) + bias
    return mark(y, BATCH_NORM)


def _normalize_fwd(x, mean, variance, scale, bias, epsilon):
    return normalize(x, mean, variance, scale, bias, epsilon), (x, mean, variance, scale)


def _normalize_bwd(epsilon, residuals, g):
    x, mean, variance, scale = residuals
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    inverse, x32 = 1 / jnp.sqrt(variance + epsilon), x.astype(jnp.float32)
    # Both sums start from `x` itself: XLA would keep x - mean, or whatever else they had in common.
    of_bias, of_scale = jnp.sum(g, axes), jnp.sum(g * (x32 * inverse - mean * inverse), axes)
    factor, slope = scale * inverse, scale * jnp.square(inverse) * of_scale / count
    dx = factor * g - slope * x32 + (slope * mean - factor * of_bias / count)
    return dx.astype(x.dtype), None, None, of_scale, of_bias


normalize.defvjp(_normalize_fwd, _normalize_bwd)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Normalizer:
    """`normalize` with all but `x` filled in: a function that is a pytree of its arrays.

    A function with a gradient of its own, such as those of `ops.recompute`, can so be given it as an
    argument.

    Attributes:
      mean: of the batch, times the input scale if there is one, float32 `[C]`, and so are the others.
      variance: likewise.
      scale: of the normalised numbers.
      bias: added to them.
      input_scale: what `x` is multiplied with first; None for nothing.
      epsilon: added to the variance.
    """

    mean: jax.Array
    variance: jax.Array
    scale: jax.Array
    bias: jax.Array
    input_scale: jax.Array | None
    epsilon: float = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        x: jax.Array,
        scale: jax.Array,
        bias: jax.Array,
        epsilon: float,
        input_scale: jax.Array | None = None,
    ) -> "Normalizer":
        """Returns the normaliser of a batch `x`, `[..., C]`; the other arguments are its attributes."""
        mean, variance = statistics(_scaled(x, input_scale))
        return cls(mean, variance, scale, bias, input_scale, epsilon)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns float32 of the shape of `x`, the batch that the statistics are of."""
        x = _scaled(x, self.input_scale)
        return normalize(x, self.mean, self.variance, self.scale, self.bias, self.epsilon)


def _scaled(x: jax.Array, input_scale: jax.Array | None) -> jax.Array:
    return x if input_scale is None else x * input_scale
