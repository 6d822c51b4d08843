"""The activation functions of the paper, on `[..., C]` arrays with one slope per channel.

Slopes are float32 and meet `x` in float32, whatever its dtype. Cast to bfloat16 first, their gradients,
sums over every position of a batch, would be accumulated in bfloat16, which stops growing early.
"""

import jax
import jax.numpy as jnp


def relu(x: jax.Array) -> jax.Array:
    """`max(x, 0)`; the gradient at exactly 0 is 0."""
    return jax.nn.relu(x)


def prelu(x: jax.Array, negative_slope: jax.Array) -> jax.Array:
    """`x` where `x > 0`, else `negative_slope * x` (He et al., 2015).

    Args:
      x: `[..., C]`.
      negative_slope: float32 `[C]`.

    Returns:
      An array of the shape and dtype of `x`.
    """
    return jnp.where(x > 0, x, (x * negative_slope).astype(x.dtype))


def fprelu(x: jax.Array, negative_slope: jax.Array, positive_slope: jax.Array) -> jax.Array:
    """`positive_slope * x` where `x > 0`, else `negative_slope * x` (Fig. 3, left).

    At exactly 0 the gradient is that of the negative side.

    Args:
      x: `[..., C]`.
      negative_slope: float32 `[C]`.
      positive_slope: float32 `[C]`.

    Returns:
      An array of the shape and dtype of `x`.
    """
    return (x * jnp.where(x > 0, positive_slope, negative_slope)).astype(x.dtype)
