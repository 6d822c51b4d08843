"""Pooling against loops over windows in NumPy, at even and odd sizes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ftbnn_jax.ops import pooling


def _windows(x, size, start, reduce):
    """`reduce` over windows of stride 2, the first at `start`; `reduce` sees existing positions only."""
    n, h, w, c = x.shape
    y = np.zeros((n, -(-h // 2), -(-w // 2), c))
    for i in range(y.shape[1]):
        for j in range(y.shape[2]):
            top, left = 2 * i + start, 2 * j + start
            y[:, i, j] = reduce(x[:, max(top, 0) : top + size, max(left, 0) : left + size])
    return y


_CASES = [
    (pooling.max_pool, lambda x: _windows(x, 3, -1, lambda v: v.max((1, 2)))),
    (pooling.avg_pool_3x3, lambda x: _windows(x, 3, -1, lambda v: v.sum((1, 2)) / 9)),
    (pooling.avg_pool_2x2, lambda x: _windows(x, 2, 0, lambda v: v.mean((1, 2)))),
    (pooling.global_avg_pool, lambda x: x.mean((1, 2))),
]


# bfloat16 rounds each of up to 35 additions to 8 bits.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float32, 1e-6), (np.float16, 1e-2), (ml_dtypes.bfloat16, 5e-2)]
)
@pytest.mark.parametrize(("function", "expected"), _CASES)
def test_pooling_follows_its_definition(function, expected, dtype, tolerance):
    for size in ((6, 4), (7, 5), (4, 7), (1, 1)):
        # All negative: a maximum over padding of 0 instead of nothing would show.
        x = (-np.random.default_rng(0).uniform(1, 2, (2, *size, 3))).astype(dtype)
        y = function(jnp.asarray(x))
        assert y.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(y, np.float64), expected(x.astype(np.float64)), rtol=tolerance
        )


@pytest.mark.parametrize("size", [(6, 4), (7, 5), (4, 7), (1, 1), (2, 3)])
def test_max_pools_gradient_goes_to_the_first_of_equal_maxima(size):
    """Few different values, so that most windows hold several maxima."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (2, *size, 3)).astype(np.float32)
    y, pullback = jax.vjp(pooling.max_pool, jnp.asarray(x))
    g = rng.standard_normal(y.shape).astype(np.float32)
    expected = np.zeros(x.shape)
    for n, i, j, c in np.ndindex(y.shape):
        rows, columns = (slice(max(2 * k - 1, 0), 2 * k + 2) for k in (i, j))
        window = x[n, rows, columns, c]
        row, column = np.unravel_index(np.argmax(window), window.shape)
        expected[n, rows.start + row, columns.start + column, c] += g[n, i, j, c]
    np.testing.assert_allclose(pullback(jnp.asarray(g))[0], expected, rtol=1e-5, atol=1e-6)
