"""Batch normalisation against its formula in NumPy's float64."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ftbnn_jax.ops import batch_norm

_EPSILON = 1e-3


def _arguments(shape, dtype=np.float32):
    rng = np.random.default_rng(0)
    offsets = np.linspace(-1, 1, shape[-1])
    x = (rng.standard_normal(shape) * np.linspace(0.1, 4, shape[-1]) + offsets).astype(dtype)
    scale = rng.uniform(-2, 2, shape[-1]).astype(np.float32)
    bias = rng.standard_normal(shape[-1]).astype(np.float32)
    return x, scale, bias


def _normalized(x, scale, bias, epsilon=_EPSILON):
    mean, variance = batch_norm.statistics(x)
    return batch_norm.normalize(x, mean, variance, scale, bias, epsilon), mean, variance


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(4, 5, 3, 6), (32, 3)])
def test_normalize_follows_the_formula(shape, dtype):
    x, scale, bias = _arguments(shape, dtype)
    y, mean, variance = _normalized(jnp.asarray(x), scale, bias)
    assert {a.dtype for a in (y, mean, variance)} == {jnp.dtype(jnp.float32)}
    x = x.astype(np.float64)
    axes = tuple(range(x.ndim - 1))
    expected_mean, expected_variance = x.mean(axes), x.var(axes)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-5, atol=1e-6)
    # One pass over x costs digits where the mean is far from 0: here up to 10 standard deviations.
    np.testing.assert_allclose(variance, expected_variance, rtol=2e-4)
    expected = (x - expected_mean) / np.sqrt(expected_variance + _EPSILON) * scale + bias
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3)


def test_folded_equals_normalised_with_the_same_statistics():
    x, scale, bias = _arguments((4, 5, 3, 6))
    y, mean, variance = _normalized(jnp.asarray(x), scale, bias)
    multiplier, offset = batch_norm.fold(scale, bias, mean, variance, _EPSILON)
    folded = batch_norm.apply_folded(jnp.asarray(x), multiplier, offset)
    np.testing.assert_allclose(folded, y, rtol=1e-5, atol=1e-5)


def test_fold_is_one_multiplication_and_one_addition():
    # sqrt(15 + 1) = 4, sqrt(0 + 1) = 1.
    multiplier, offset = batch_norm.fold(
        *(jnp.array(a) for a in ([2.0, -3.0], [1.0, 0.5], [6.0, 2.0], [15.0, 0.0])), epsilon=1.0
    )
    np.testing.assert_array_equal(multiplier, [0.5, -3.0])
    np.testing.assert_array_equal(offset, [1 - 6 * 0.5, 0.5 - 2 * -3])
    y = batch_norm.apply_folded(jnp.array([[4.0, 2.0]], jnp.float16), multiplier, offset)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, [[4 * 0.5 - 2, 2 * -3 + 6.5]])


def test_gradients_go_through_the_statistics():
    """The textbook's three terms: the input's own, its mean's and its variance's."""
    x, scale, bias = _arguments((8, 3, 2, 4))
    dy = np.random.default_rng(1).standard_normal(x.shape)
    vjp = jax.jit(
        lambda x, scale, bias, dy: jax.vjp(lambda *a: _normalized(*a)[0], x, scale, bias)[1](dy)
    )
    actual = vjp(x, scale, bias, dy.astype(np.float32))
    x, axes = x.astype(np.float64), (0, 1, 2)
    inverse = 1 / np.sqrt(x.var(axes) + _EPSILON)
    normal = (x - x.mean(axes)) * inverse
    dx = scale * inverse * (dy - dy.mean(axes) - normal * (dy * normal).mean(axes))
    for gradient, expected in zip(actual, (dx, (dy * normal).sum(axes), dy.sum(axes)), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.567])
def test_a_constant_channel_has_no_negative_variance(value):
    """Mean of squares minus square of mean can round below 0, and its root would be NaN."""
    x = jnp.full((3, 7, 7, 2), value)
    y, _, variance = _normalized(x, jnp.ones(2), jnp.zeros(2), 1e-12)
    assert (np.asarray(variance) >= 0).all()
    assert np.isfinite(y).all()
