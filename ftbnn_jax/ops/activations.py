"""The activation functions of the paper and of Table 1's methods, on `[..., C]` arrays.

Slopes, one per channel, are float32 and meet `x` in float32, whatever its dtype. Cast to bfloat16 first,
their gradients, sums over every position of a batch, would be accumulated in bfloat16, which stops
growing early.
"""

import jax
import jax.numpy as jnp

from ftbnn_jax.ops.marks import ACTIVATION, mark


def relu(x: jax.Array) -> jax.Array:
    """`max(x, 0)`; the gradient at exactly 0 is 0."""
    return jax.nn.relu(x)


def hardtanh(x: jax.Array) -> jax.Array:
    """`min(max(x, -1), 1)`, that of BNN and IR-Net (Hubara et al., 2016; Qin et al., 2020)."""
    return mark(jnp.clip(x, -1, 1), ACTIVATION)


def prelu(x: jax.Array, negative_slope: jax.Array) -> jax.Array:
    """`x` where `x > 0`, else `negative_slope * x` (He et al., 2015).

    Args:
      x: `[..., C]`.
      negative_slope: float32 `[C]`.

    Returns:
      An array of the shape and dtype of `x`.
    """
    return mark(jnp.where(x > 0, x, (x * negative_slope).astype(x.dtype)), ACTIVATION)


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
    return mark(_fprelu(x, negative_slope, positive_slope), ACTIVATION)


@jax.custom_vjp
def _fprelu(x, negative_slope, positive_slope):
    return (x * jnp.where(x > 0, positive_slope, negative_slope)).astype(x.dtype)


def _fprelu_fwd(x, negative_slope, positive_slope):
    return _fprelu(x, negative_slope, positive_slope), (x, negative_slope, positive_slope)


def _fprelu_bwd(residuals, g):
    x, negative_slope, positive_slope = residuals
    dx = (g * jnp.where(x > 0, positive_slope, negative_slope)).astype(x.dtype)
    products, axes = g.astype(jnp.float32) * x, tuple(range(x.ndim - 1))
    if jax.default_backend() != "cpu":
        return dx, jnp.sum(products, axes, where=~(x > 0)), jnp.sum(products, axes, where=x > 0)
    # Two separate sums would make XLA write the products down twice, and add up their factors each time.
    positive = jnp.arange(2)[:, None] == 1
    sides = jnp.where((x > 0)[..., None, :] == positive, products[..., None, :], 0)
    return dx, *jnp.sum(sides, axes)


_fprelu.defvjp(_fprelu_fwd, _fprelu_bwd)
