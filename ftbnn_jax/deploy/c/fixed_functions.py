"""The functions of `kernels/ftbnn_fixed.h` in numpy, bit by bit: of whole numbers, in int64.

An argument is `x / 2**bits`, a result `y / 2**result_bits`. exp is 2 to a power, whose fraction goes
through a polynomial of 30 fraction bits; logistic and tanh follow from it by one division. Results are
right to about 2**-27 of their size before they are rounded.
"""

import math
from collections.abc import Callable

import numpy as np

from ftbnn_jax.deploy.c.mantissas import shifted

_ONE = 1 << 30
_LOG2_E = round(math.log2(math.e) * _ONE)
# 2**f, for f from 0 to 1: ln(2)**k / k!.
_POWERS = [round(math.log(2) ** k / math.factorial(k) * _ONE) for k in range(10)]


def _power(x: np.ndarray, bits: int, result_bits: int) -> np.ndarray:
    """Returns `exp(x)`; what exceeds int32 is at least 2**31."""
    product = x * _LOG2_E
    whole = product >> (30 + bits)
    fraction = (product - (whole << (30 + bits))) >> bits
    power = np.full_like(product, _POWERS[-1])
    for coefficient in _POWERS[-2::-1]:
        power = coefficient + ((power * fraction) >> 30)
    shift = np.clip(30 - result_bits - whole, -2, 60)
    right = np.maximum(shift, 0)
    rounded = (power + ((np.int64(1) << right) >> 1)) >> right
    return np.where(shift < 0, power << np.maximum(-shift, 0), rounded)


def _logistic(x, bits, result_bits):
    power = _power(-np.abs(x), bits, 30)
    part = (np.int64(_ONE) << 30) // (_ONE + power)
    return shifted(np.where(x < 0, _ONE - part, part), 30 - result_bits)


def _tanh(x, bits, result_bits):
    power = _power(-2 * np.abs(x), bits, 30)
    part = ((_ONE - power) << 30) // (_ONE + power)
    return shifted(np.where(x < 0, -part, part), 30 - result_bits)


def _root(x: np.ndarray) -> np.ndarray:
    """Returns the whole part of a square root."""
    root = np.sqrt(x.astype(np.float64)).astype(np.int64)
    root -= root * root > x
    return root + ((root + 1) * (root + 1) <= x)


def _sqrt(x, bits, result_bits):
    shift = 2 * result_bits - bits
    x = np.maximum(x, 0)
    return _root(x << shift if shift >= 0 else x >> -shift)


def _rsqrt(x, bits, result_bits):
    shift = 30 + bits % 2
    root = _root(np.maximum(x, 1) << shift)
    found = (np.int64(1) << ((bits + shift) // 2 + result_bits)) // root
    return np.where(x > 0, found, np.int64(1) << 31)


def _floor(x, bits, result_bits):
    return (x >> bits) << result_bits


def _ceil(x, bits, result_bits):
    return -_floor(-x, bits, result_bits)


def _round(x, bits, result_bits):
    whole = x >> bits
    twice = (x - (whole << bits)) * 2
    up = (twice > 1 << bits) | ((twice == 1 << bits) & (whole & 1 == 1))
    return (whole + up) << result_bits


def whole(x: np.ndarray, bits: int) -> np.ndarray:
    """Returns numbers without their fraction."""
    return np.where(x < 0, -(-x >> bits), x >> bits)


# By operation of a graph.
FUNCTIONS: dict[str, Callable[[np.ndarray, int, int], np.ndarray]] = {
    "exp": _power,
    "logistic": _logistic,
    "tanh": _tanh,
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
    "floor": _floor,
    "ceil": _ceil,
    "round": _round,
}


def apply(name: str, x: np.ndarray, bits: int, result_bits: int) -> np.ndarray:
    """Returns the results of a function of whole numbers of any shape, int64."""
    return FUNCTIONS[name](x.astype(np.int64), bits, result_bits)
