"""ReLU, PReLU and FPReLU against their formulas in NumPy."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ftbnn_jax.ops import activations

# One row per case, one column per channel, each channel with its own slopes; 0 stands in every channel.
_X = np.array(
    [
        [-2.0, -2.0, -2.0, -2.0],
        [-0.0, -0.0, -0.0, -0.0],
        [0.0, 0.0, 0.0, 0.0],
        [3.0, 3.0, 3.0, 3.0],
        [1e-30, -1e-30, 1e30, -1e30],
    ],
    np.float32,
)
_NEGATIVE = np.array([0.25, 0.0, -0.5, 1.0], np.float32)
_POSITIVE = np.array([1.0, 2.0, -0.5, 0.0], np.float32)
_ONE, _ZERO = np.ones(4, np.float32), np.zeros(4, np.float32)

# Function, the slopes it takes, and the slopes it then has on the two sides. At exactly 0 the gradient
# is that of the negative side in every one.
_CASES = [
    (activations.relu, (), _ZERO, _ONE),
    (activations.prelu, (_NEGATIVE,), _NEGATIVE, _ONE),
    (activations.fprelu, (_NEGATIVE, _POSITIVE), _NEGATIVE, _POSITIVE),
]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("function", "slopes", "negative", "positive"), _CASES)
def test_values_and_gradients_follow_the_formula(function, slopes, negative, positive, dtype):
    x = _X.astype(dtype)
    slope = np.where(x > 0, positive, negative)
    y, vjp = jax.vjp(function, jnp.asarray(x), *map(jnp.asarray, slopes))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, (x.astype(np.float32) * slope).astype(dtype))

    cotangent = np.arange(1, x.size + 1, dtype=np.float32).reshape(x.shape).astype(dtype)
    dx, *dslopes = vjp(jnp.asarray(cotangent))
    assert dx.dtype == dtype
    np.testing.assert_array_equal(dx, (cotangent.astype(np.float32) * slope).astype(dtype))
    products = cotangent.astype(np.float64) * x.astype(np.float64)
    for dslope, side in zip(dslopes, (x <= 0, x > 0), strict=False):
        np.testing.assert_allclose(dslope, np.where(side, products, 0).sum(0), rtol=1e-6)


@pytest.mark.parametrize(
    "gradients",
    [
        jax.grad(lambda slope, x: jnp.sum(activations.prelu(x, slope), dtype=jnp.float32)),
        jax.grad(lambda slope, x: jnp.sum(activations.fprelu(x, slope, slope), dtype=jnp.float32)),
    ],
)
def test_slope_gradients_of_bfloat16_activations_are_summed_in_float32(gradients):
    """A bfloat16 sum of 4,096 equal terms would stop at 256 of them."""
    x = jnp.full((16, 16, 16, 2), -0.5, jnp.bfloat16)
    actual = jax.jit(gradients)(jnp.ones(2), x)
    np.testing.assert_array_equal(actual, np.full(2, -0.5 * 16**3, np.float32))
