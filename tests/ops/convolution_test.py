"""conv2d against `lax.conv_general_dilated` and JAX's own gradients of it, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ftbnn_jax.ops import convolution


def _plain(x, kernel, stride, padding):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )


def _arguments(features_in, size, kernel_size, features_out=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, *size, features_in)).astype(np.float32)
    kernel = rng.standard_normal((kernel_size, kernel_size, features_in, features_out))
    return jnp.asarray(x), jnp.asarray(kernel, jnp.float32)


# Relative to the largest element: 24, 8 and 11 bits of mantissa; float16 has the gradients of bfloat16.
_TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2, jnp.float16: 2e-3}
_GRADIENT_TOLERANCE = _TOLERANCE | {jnp.float16: 2e-2}


def _assert_close(actual, expected, tolerance):
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def _value_and_gradients(function, x, kernel, cotangent):
    y, vjp = jax.vjp(function, x, kernel)
    return y, *vjp(cotangent)


# Compiled as a whole: the taps of the kernel's gradient are many operations of their own shapes.
_conv2d = jax.jit(convolution.conv2d, static_argnums=(2, 3, 4))


@pytest.mark.parametrize(
    ("features_in", "size", "kernel_size", "stride", "padding", "compute_dtypes"),
    [
        # Below and above the number of channels from which the kernel's gradient goes by taps.
        (3, (12, 11), 7, 2, 3, _TOLERANCE),
        (15, (6, 7), 3, 2, 1, [jnp.float32]),
        (16, (6, 7), 3, 2, 1, [jnp.float32]),
        (20, (7, 9), 3, 1, 0, [jnp.float32]),
        (20, (5, 4), 5, 1, 2, [jnp.float32]),
        # Rows and columns that no window of stride 2 reaches.
        (20, (8, 7), 1, 2, 0, _TOLERANCE),
        (20, (8, 8), 3, 2, 0, [jnp.float32]),
    ],
)
def test_conv2d_is_laxs_convolution_with_its_gradients(
    features_in, size, kernel_size, stride, padding, compute_dtypes
):
    x, kernel = _arguments(features_in, size, kernel_size)
    shape = _plain(x, kernel, stride, padding).shape
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32)
    expected = _value_and_gradients(lambda x, k: _plain(x, k, stride, padding), x, kernel, cotangent)
    for compute_dtype in compute_dtypes:
        actual = _value_and_gradients(
            lambda x, k: _conv2d(x, k, stride, padding, compute_dtype),  # noqa: B023
            x,
            kernel,
            cotangent,
        )
        assert [a.dtype for a in actual] == [jnp.float32] * 3
        _assert_close(actual[0], expected[0], _TOLERANCE[compute_dtype])
        for gradient, expected_gradient in zip(actual[1:], expected[1:], strict=True):
            _assert_close(gradient, expected_gradient, _GRADIENT_TOLERANCE[compute_dtype])


@pytest.mark.parametrize("features_in", [3, 20])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_have_the_dtypes_of_the_arguments(features_in, dtype):
    x, kernel = _arguments(features_in, (6, 6), 3)
    gradients = jax.eval_shape(
        jax.grad(lambda x, k: jnp.sum(convolution.conv2d(x, k, 1, 1, jnp.float16)), argnums=(0, 1)),
        x.astype(dtype),
        kernel,
    )
    assert [g.dtype for g in gradients] == [dtype, jnp.float32]


@pytest.mark.parametrize("features_in", [3, 20])
def test_float16_operands_have_gradients_of_float32s_range(features_in):
    """Float16 ends at 6e-8 and 65504; the gradients of a mean over a large batch lie below."""
    x, kernel = _arguments(features_in, (6, 6), 3)
    y = _plain(x, kernel, 1, 1)
    expected = _value_and_gradients(lambda x, k: _plain(x, k, 1, 1), x, kernel, jnp.ones(y.shape))
    for scale in (1e-12, 1e12):
        actual = _value_and_gradients(
            lambda x, k: _conv2d(x, k, 1, 1, jnp.float16), x, kernel, jnp.full(y.shape, scale)
        )
        for gradient, expected_gradient in zip(actual[1:], expected[1:], strict=True):
            _assert_close(np.asarray(gradient, np.float64) / scale, expected_gradient, 2e-2)


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding", "expected"),
    [
        (224, 7, 2, 3, 112),
        (112, 3, 2, 1, 56),
        (56, 3, 1, 1, 56),
        (7, 3, 2, 1, 4),
        (8, 3, 2, 1, 4),
        (8, 3, 2, 0, 3),
        (5, 5, 1, 0, 1),
        (8, 1, 2, 0, 4),
    ],
)
def test_output_size(size, kernel_size, stride, padding, expected):
    assert convolution.output_size(size, kernel_size, stride, padding) == expected
    x, kernel = _arguments(1, (size, size), kernel_size, features_out=1)
    shape = jax.eval_shape(lambda: convolution.conv2d(x, kernel, stride, padding)).shape
    assert shape == (2, expected, expected, 1)
