"""Pooling on NHWC arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
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


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum, stride 2, over `[N, H, W, C]`; returns `[N, ceil(H/2), ceil(W/2), C]`.

    The gradient goes to the first of several equal maxima. It keeps their places, a byte each: XLA's
    own would look for them again, one window after the other.
    """
    return _window(x, -jnp.inf, lax.max, 3, 2, 1, (1, 1))


_TAPS = tuple((i, j) for i in range(3) for j in range(3))


def _max_and_place(x):
    """Returns the maxima, and which of `_TAPS` each stems from, uint8."""
    _, h, w, _ = x.shape
    # Windows reach one row and column beyond the first, and beyond the last where the size is odd.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    taps = [x[:, i : i + h : 2, j : j + w : 2] for i, j in _TAPS]
    largest = functools.reduce(jnp.maximum, taps)
    place = jnp.zeros(largest.shape, jnp.uint8)
    for number in reversed(range(len(taps))):
        place = jnp.where(taps[number] == largest, jnp.uint8(number), place)
    return largest, place


def _max_pool_fwd(x):
    largest, place = _max_and_place(x)
    return largest, (place, jnp.zeros((0, *x.shape[1:]), x.dtype))


def _max_pool_bwd(residuals, g):
    place, like_x = residuals
    _, h, w, _ = like_x.shape
    n, rows, columns, features = g.shape
    after = ((0, 0), (0, 1), (0, 1), (0, 0))
    place, g = jnp.pad(place, after), jnp.pad(g, after)

    def of_outputs(down, right):
        """What outputs `(m + down, k + right)` hand to positions `2m, 2m + 1` and `2k, 2k + 1`."""
        near = (slice(None), slice(down, down + rows), None, slice(right, right + columns), None)
        taps = _tap(down)[:, None] * 3 + _tap(right)
        met = (_tap(down)[:, None] >= 0) & (_tap(right) >= 0)
        taps, met = (a[:, None, :, None] for a in (taps, met))
        return jnp.where((place[near] == taps.astype(np.uint8)) & met, g[near], 0)

    # The whole result is one expression, so that the compiler writes it once.
    dx = sum(of_outputs(down, right) for down in (0, 1) for right in (0, 1))
    return (dx.reshape(n, 2 * rows, 2 * columns, features)[:, :h, :w],)


def _tap(ahead: int) -> np.ndarray:
    """Which tap of the output `m + ahead` meets the positions `2m` and `2m + 1`; negative for none."""
    return np.array([-1, 0]) if ahead else np.array([1, 2])


max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)


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
