"""Every quantizer and every gradient against formulas in NumPy, on zeros, bounds and extremes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ftbnn_jax.errors import UserError
from ftbnn_jax.ops import quantizers
from ftbnn_jax.ops.quantizers import (
    Clipped,
    Evolving,
    PiecewiseQuadratic,
    ThreeValuedSign,
    TwoValuedSign,
)

_DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16]


def _values(dtype):
    """Zeros of both signs, tiny and huge values, and +-1.2 in `dtype` with its neighbours."""
    info = ml_dtypes.finfo(dtype)
    bound = np.asarray(1.2, dtype)
    # 1.2 lies between 1 and 2, where neighbours are eps apart.
    beyond, within = bound + info.eps, bound - info.eps
    assert within < bound < beyond
    positive = [info.smallest_normal, 1e-3, 0.1, 0.6, 1.0, within, bound, beyond, 3.0, 30.0, info.max]
    return np.array([0.0, -0.0, *positive, *(-np.asarray(v, dtype) for v in positive)], dtype)


def _three_valued(x):
    return np.where(x > 0, 1, np.where(x < 0, -1, 0))


def _two_valued(x):
    return np.where(x > 0, 1, -1)


def _clipped(bound):
    return lambda x, progress: np.abs(x) <= np.asarray(bound, x.dtype)


def _piecewise_quadratic(x, progress):
    magnitude = np.abs(x.astype(np.float64))
    return np.where(magnitude <= 1, 2 - 2 * magnitude, 0)


def _evolving(first, last):
    """Differences of `k * tanh(t * x)`, whose derivative the gradient is."""

    def slope(x, progress):
        x = x.astype(np.float64)
        t = 10 ** (np.log10(first) + progress * (np.log10(last) - np.log10(first)))
        k = 1 / t if t < 1 else 1
        return k * (np.tanh(t * (x + 1e-6)) - np.tanh(t * (x - 1e-6))) / 2e-6

    return slope


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize(
    ("gradient", "slope", "tolerance"),
    [
        (Clipped(), _clipped(1.2), 0),
        (Clipped(1), _clipped(1.0), 0),
        (PiecewiseQuadratic(), _piecewise_quadratic, 1),
        (Evolving(), _evolving(0.1, 10), 2),
        (Evolving(1e-2, 1.0), _evolving(1e-2, 1.0), 2),
    ],
)
@pytest.mark.parametrize(
    ("sign", "expected"), [(ThreeValuedSign, _three_valued), (TwoValuedSign, _two_valued)]
)
def test_a_sign_and_its_gradient_are_their_formulas(sign, expected, gradient, slope, tolerance, dtype):
    x = _values(dtype)
    # Powers of two, so that the products round no more than the slopes.
    cotangent = (2.0 ** (np.arange(len(x)) % 5)).astype(dtype)
    for progress in (0.0, 0.3, 1.0):
        y, backward = jax.vjp(sign(gradient), jnp.asarray(x), jnp.float32(progress))
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, expected(x).astype(dtype))
        # A zero of the sign bit would be a one in packed bits.
        assert not np.signbit(np.asarray(y)[np.asarray(y) == 0]).any()
        dx, of_progress = backward(jnp.asarray(cotangent))
        assert dx.dtype == dtype
        assert of_progress == 0
        np.testing.assert_allclose(
            np.asarray(dx, np.float64),
            slope(x, progress) * cotangent.astype(np.float64),
            # The slope of a tanh is a difference of numbers near 1.
            rtol=tolerance * 10 * float(ml_dtypes.finfo(dtype).eps),
            atol=1e-4 * (tolerance > 1),
        )


@pytest.mark.parametrize("sign", [ThreeValuedSign, TwoValuedSign])
def test_the_default_gradient_is_the_papers(sign):
    x = jnp.array([-1.2, 1.2, -1.21, 1.21])
    np.testing.assert_array_equal(jax.grad(lambda x: sign()(x).sum())(x), [1, 1, 0, 0])


def test_the_first_evolving_gradient_passes_everywhere_and_the_last_almost_nowhere():
    x = jnp.array([-1.3, -0.4, 0, 0.1, 0.9, 4])
    first, last = (Evolving().slope(x, progress) for progress in (0.0, 1.0))
    # t = 0.1 and k = 10; then t = 10 and k = 1.
    assert first.min() > 0.8
    assert (last > 1e-3).tolist() == [False, True, True, True, False, False]


@pytest.mark.parametrize(
    ("quantizer", "function", "derivative"),
    [
        (quantizers.Tanh(), np.tanh, lambda x: 1 / np.cosh(x) ** 2),
        (quantizers.Identity(), lambda x: x, np.ones_like),
    ],
)
def test_what_leaves_numbers_real(quantizer, function, derivative):
    x = np.array([-3, -1.2, -0.5, 0, 0.5, 1.2, 3], np.float32)
    y, backward = jax.vjp(lambda x: quantizer(x, 0.5), jnp.asarray(x))
    np.testing.assert_allclose(y, function(x.astype(np.float64)), rtol=1e-6)
    (dx,) = backward(jnp.full(len(x), 2.0))
    np.testing.assert_allclose(dx, 2 * derivative(x.astype(np.float64)), rtol=1e-4)
    assert not quantizer.gives_signs


def test_equal_quantizers_are_equal_to_flax_and_jit():
    assert ThreeValuedSign(Clipped(1.2)) == ThreeValuedSign() != TwoValuedSign()
    assert hash(ThreeValuedSign(Clipped(1.2))) == hash(ThreeValuedSign())
    assert ThreeValuedSign(Clipped(1.0)) != ThreeValuedSign(Evolving()) != ThreeValuedSign()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clipped(0), r"Clipped\.bound=0: must be a float32 number, positive"),
        (lambda: Clipped("1.2"), r"Clipped\.bound='1\.2': must be"),
        (lambda: Evolving(last=float("inf")), r"Evolving\.last=inf: must be"),
        (lambda: Evolving(first=-1), r"Evolving\.first=-1: must be"),
        (lambda: TwoValuedSign(1.2), r"TwoValuedSign\.gradient=1\.2: must be a Gradient"),
        (lambda: ThreeValuedSign("clipped"), r"ThreeValuedSign\.gradient='clipped': must be"),
    ],
)
def test_what_cannot_be_a_quantizer_is_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
