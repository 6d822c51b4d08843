"""The activation functions of the paper, on `[..., C]` arrays with one slope per channel."""

import jax
import jax.numpy as jnp


def relu(x: jax.Array) -> jax.Array:
    """`max(x, 0)`; the gradient at exactly 0 is 0."""
    return jax.nn.relu(x)


def prelu(x: jax.Array, negative_slope: jax.Array) -> jax.Array:
    """`x` where `x > 0`, else `negative_slope * x` (He et al., 2015).

    Args:
      x: `[..., C]`.
      negative_slope: `[C]`.

    Returns:
      An array of the shape and dtype of `x`.
    """
    return jnp.where(x > 0, x, x * negative_slope.astype(x.dtype))


def fprelu(x: jax.Array, negative_slope: jax.Array, positive_slope: jax.Array) -> jax.Array:
    """`positive_slope * x` where `x > 0`, else `negative_slope * x` (Fig. 3, left).

    At exactly 0 the gradient is that of the negative side.

    Args:
      x: `[..., C]`.
      negative_slope: `[C]`.
      positive_slope: `[C]`.

    Returns:
      An array of the shape and dtype of `x`.
    """
    slope = jnp.where(x > 0, positive_slope.astype(x.dtype), negative_slope.astype(x.dtype))
    return x * slope
