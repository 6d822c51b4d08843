"""Numbers as integers that share a shift."""

import math
from typing import Any

import numpy as np

from ftbnn_jax.errors import UserError

_LARGEST = np.iinfo(np.int32).max
_LARGEST_SUM = np.iinfo(np.int64).max
_PARAMETER_BITS = 30
LARGEST_SHIFT = 60


class DoesNotFit(UserError):
    """A parameter is too large."""


def shifted(x: np.ndarray, shift: int) -> np.ndarray:
    """Returns `x / 2**shift`, rounded to the nearest, halves up."""
    return (x + (1 << shift >> 1)) >> shift


def of(
    name: str, values: np.ndarray, bits: int = _PARAMETER_BITS, exponent: int = 0
) -> tuple[np.ndarray, int]:
    """Quantises `scaled = values * 2**exponent`.

    Returns:
      int32 `round(scaled * 2**shift)`, at most `2**bits - 1`, and the largest such shift.
    """
    scaled = values.astype(np.float64) * 2.0**exponent
    largest = float(np.abs(scaled).max())
    if not math.isfinite(largest):
        raise UserError(f"tensor {name!r}: holds a number that is not finite; C takes finite ones only")
    shift = min(LARGEST_SHIFT, bits - math.frexp(largest)[1]) if largest else 0
    if shift >= 0 and np.abs(np.rint(scaled * 2.0**shift)).max() >= 2**bits:
        shift -= 1
    if shift < 0:
        raise _does_not_fit(name, values)
    return np.rint(scaled * 2.0**shift).astype(np.int32), shift


def at(name: str, values: np.ndarray, fraction_bits: int) -> np.ndarray:
    """Returns `values * 2**fraction_bits`, rounded, int32."""
    scaled = np.rint(values.astype(np.float64) * 2.0**fraction_bits)
    if np.isnan(scaled).any():
        raise UserError(f"tensor {name!r}: holds a number that is not finite; C takes finite ones only")
    if np.abs(scaled).max() > _LARGEST:
        raise _does_not_fit(name, values)
    return scaled.astype(np.int32)


def _does_not_fit(name: str, values: np.ndarray) -> DoesNotFit:
    return DoesNotFit(f"tensor {name!r}: {np.abs(values).max():.3g} does not fit into fixed point")


def heaviest(kernel: np.ndarray) -> Any:
    """Returns the largest sum of one output's absolute weights, a Python number."""
    wide = np.abs(kernel.astype(np.result_type(kernel, np.int64)))
    return wide.sum(axis=tuple(range(kernel.ndim - 1))).max().item()


def weights(name: str, kernel: np.ndarray, largest: int) -> tuple[np.ndarray, int]:
    """Quantises a kernel whose inputs are at most `largest`, so that no sum can leave int64.

    Returns:
      The weights, int32, and their fraction bits.
    """
    kernel = kernel.astype(np.float64)
    # One unit for the rounding of each weight.
    room = _LARGEST_SUM // largest - kernel[..., 0].size
    share = np.abs(kernel).max() / max(heaviest(kernel), 1e-30)
    bits = min(_PARAMETER_BITS, math.floor(math.log2(max(room * share, 1))))
    return of(name, kernel, bits)
