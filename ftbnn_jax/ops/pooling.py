"""Pooling on NHWC arrays."""

import jax
import jax.numpy as jnp
from jax import lax


def _window(x, init, operation, size, stride, low, high):
    return lax.reduce_window(
        x,
        init,
        operation,
        window_dimensions=(1, size, size, 1),
        window_strides=(1, stride, stride, 1),
        padding=((0, 0), (low, high[0]), (low, high[1]), (0, 0)),
    )


def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum, stride 2, over `[N, H, W, C]`; returns `[N, ceil(H/2), ceil(W/2), C]`."""
    return _window(x, -jnp.inf, lax.max, 3, 2, 1, (1, 1))


def avg_pool_3x3(x: jax.Array, stride: int = 2) -> jax.Array:
    """3x3 mean over the zero-padded `[N, H, W, C]`: always divides by 9.

    Returns `[N, ceil(H/stride), ceil(W/stride), C]`, aligned with a 3x3 convolution of padding 1.
    """
    return _window(x, 0.0, lax.add, 3, stride, 1, (1, 1)) / jnp.asarray(9, x.dtype)


def avg_pool_2x2(x: jax.Array) -> jax.Array:
    """2x2 mean, stride 2, over `[N, H, W, C]`; returns `[N, ceil(H/2), ceil(W/2), C]`.

    An odd last row or column is the mean of the positions that exist, so that the result lines up
    with a 3x3 convolution of stride 2 and padding 1 at every size.
    """
    _, h, w, _ = x.shape
    odd = (h % 2, w % 2)
    total = _window(x, 0.0, lax.add, 2, 2, 0, odd)
    if odd == (0, 0):
        return total / jnp.asarray(4, x.dtype)
    count = _window(jnp.ones((1, h, w, 1), x.dtype), 0.0, lax.add, 2, 2, 0, odd)
    return total / count


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Mean over the positions of `[N, H, W, C]`; returns `[N, C]`."""
    return jnp.mean(x, axis=(1, 2))


def head(x: jax.Array, kind: str) -> jax.Array:
    """What a classifier reads of `[N, H, W, C]`.

    Args:
      x: the last block's output.
      kind: "mean" for `global_avg_pool`, or "flatten" for `avg_pool_2x2`, flattened.

    Returns:
      `[N, C]`, or `[N, ceil(H/2) * ceil(W/2) * C]`.
    """
    if kind == "mean":
        return global_avg_pool(x)
    return avg_pool_2x2(x).reshape(x.shape[0], -1)
