"""Batch normalisation over all axes but the last, in training form and folded for inference.

Training graph and packed runtime share `fold` and `apply_folded`; given the same folded numbers, a value
that is exactly 0 in one is exactly 0 in the other.
"""

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


def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises by the batch's own statistics (Ioffe & Szegedy, 2015).

    Under `jax.jit` over a batch sharded on several devices, the statistics are the whole batch's.

    Args:
      x: `[..., C]`, any floating point dtype; computed in float32.
      scale: float32 `[C]`.
      bias: float32 `[C]`.
      epsilon: added to the variance.

    Returns:
      `(y, mean, variance)`: float32 of the shape of `x`, and the batch's statistics, `[C]`; the variance
      is the biased one. The statistics that are returned carry no gradient.
    """
    mean, variance = jax.lax.stop_gradient(statistics(x))
    return _normalize(x, mean, variance, scale, bias, epsilon), mean, variance


def _normalize_fwd(x, mean, variance, scale, bias, epsilon):
    y = normalize_by(x, mean, variance, scale, bias, epsilon)
    return y, (x, mean, variance, scale)


def _normalize_bwd(epsilon, residuals, g):
    x, mean, variance, scale = residuals
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    inverse, x32 = 1 / jnp.sqrt(variance + epsilon), x.astype(jnp.float32)
    # Both sums start from `x` itself: XLA would keep x - mean, or whatever else they had in common.
    of_bias, of_scale = jnp.sum(g, axes), jnp.sum(g * (x32 * inverse - mean * inverse), axes)
    factor, slope = scale * inverse, scale * jnp.square(inverse) * of_scale / count
    dx = factor * g - slope * x32 + (slope * mean - factor * of_bias / count)
    return dx.astype(x.dtype), None, None, of_scale, of_bias


def statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and biased variance of each channel, float32 `[C]`; `x` is `[..., C]`."""
    x = x.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes)
    # One pass over x instead of two; rounding can leave a tiny negative, hence the maximum.
    return mean, jnp.maximum(jnp.mean(jnp.square(x), axes) - jnp.square(mean), 0)


def normalize_by(
    x: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
) -> jax.Array:
    """Normalises `[..., C]` by given statistics; returns float32."""
    y = (x.astype(jnp.float32) - mean) * (scale / jnp.sqrt(variance + epsilon)) + bias
    return mark(y, BATCH_NORM)


# This gradient knows whose statistics these are. It keeps `x` and goes through it and the incoming
# gradient twice; JAX's own would have `x - mean` kept too.
_normalize = jax.custom_vjp(normalize_by, nondiff_argnums=(5,))
_normalize.defvjp(_normalize_fwd, _normalize_bwd)
