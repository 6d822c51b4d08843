"""The functions of `kernels/ftbnn_functions.h` in numpy, bit by bit: of float32, computed in double."""

from collections.abc import Callable

import numpy as np

_LARGEST = np.float32(np.finfo(np.float32).max)


def _small_expm1(x):
    total = np.zeros_like(x)
    for n in range(16, 0, -1):
        total = (total + 1.0) * (x / n)
    return total


def _exp(x):
    x = np.where(x > 150.0, 150.0, np.where(x < -150.0, -150.0, x))
    n = np.trunc(x * 1.4426950408889634 + np.where(x < 0, -0.5, 0.5))
    rest = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10
    return (_small_expm1(rest) + 1.0) * np.exp2(n)


def _expm1(x):
    return np.where((x > -0.35) & (x < 0.35), _small_expm1(x), _exp(x) - 1.0)


def _small_log1p(y):
    t = y / (2.0 + y)
    square, total = t * t, np.zeros_like(y)
    for n in range(27, 0, -2):
        total = total * square + 1.0 / n
    return 2.0 * t * total


def _log(x):
    fraction, exponent = np.frexp(x)
    fraction, exponent = fraction * 2, exponent - 1
    large = fraction > 1.4142135623730951
    fraction = np.where(large, fraction * 0.5, fraction)
    return (exponent + large) * 0.6931471805599453 + _small_log1p(fraction - 1.0)


def _log_of_any(x, y):
    """The logarithm of `y`, a number that is 0 or negative where `x` says so."""
    found = np.where(y > 0, _log(np.where(y > 0, y, 1.0)), np.where(y < 0, np.nan, -np.inf))
    return np.where(np.isnan(x) | (x > _LARGEST), x, found)


def _log1p(x):
    small = (x > -np.float32(0.3)) & (x < np.float32(0.5))
    return np.where(small, _small_log1p(np.where(small, x, 0.0)), _log_of_any(x, 1.0 + x))


def _logistic(x):
    return 1.0 / (1.0 + _exp(-x))


def _tanh(x):
    twice = _expm1(2.0 * x)
    return twice / (twice + 2.0)


def _newton(x):
    root = ((x.view(np.uint64) >> np.uint64(1)) + np.uint64(1023 << 51)).view(np.float64)
    for _ in range(5):
        root = 0.5 * (root + x / root)
    return root


def _sqrt(x):
    usual = (x > 0) & (x <= _LARGEST)
    found = _newton(np.where(usual, x, 1.0))
    return np.where(usual, found, np.where(x < 0, np.nan, x))


def _rsqrt(x):
    usual = (x > 0) & (x <= _LARGEST)
    found = 1.0 / _newton(np.where(usual, x, 1.0))
    return np.where(usual, found, np.where(x == 0, 1.0 / x, np.where(x > 0, 0.0, np.nan)))


# By operation of a graph; each maps float64 to float64.
FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": _exp,
    "expm1": _expm1,
    "log": lambda x: _log_of_any(x, x),
    "log1p": _log1p,
    "logistic": _logistic,
    "tanh": _tanh,
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
}


def apply(name: str, x: np.ndarray) -> np.ndarray:
    """Returns float32 results of the function `name` for float32 numbers of any shape."""
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        found = np.asarray(FUNCTIONS[name](wide))
    return np.where(np.isnan(x), x, found).astype(np.float32)
