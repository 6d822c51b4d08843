"""The two arithmetics of the C program, one operation at a time, in numpy.

As in `kernels/ftbnn_float.h` and `kernels/ftbnn_fixed.h`: what a layer does with a number there, it does
here, with the same roundings.
"""

from typing import Protocol

import numpy as np

from ftbnn_jax.deploy.c import fixed_point, schedule, tables

NORM = ("multiplier", "offset")


class Arithmetic(Protocol):
    """What `emulator.Emulator` computes with.

    Attributes:
      dtype: of values and of their sums.
      limits: the smallest and the largest value.
      tensors: the network's constants, under the names of the artifact's.
    """

    dtype: type
    limits: tuple[float, float]
    tensors: dict[str, np.ndarray]

    def from_sum(self, name: str, sums: np.ndarray) -> np.ndarray:
        """Returns the values of sums of products with the kernel `name`."""

    def mean(self, sums: np.ndarray, count: int | np.ndarray) -> np.ndarray:
        """Returns sums divided by how many values there were."""

    def normalize(self, name: str, x: np.ndarray, parts: tuple[str, str] = NORM) -> np.ndarray:
        """Applies a batch norm; `parts`: the names of its factors and offsets."""

    def scale(self, name: str, slope: str, x: np.ndarray) -> np.ndarray:
        """Multiplies with a slope of the activation `name`."""


class SinglePrecision:
    """float32, every operation rounded by itself."""

    dtype = np.float32
    limits = (-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max))

    def __init__(self, network: schedule.Network):
        self.tensors = tables.float_tensors(network)

    def from_sum(self, name: str, sums: np.ndarray) -> np.ndarray:
        return sums

    def mean(self, sums: np.ndarray, count: int | np.ndarray) -> np.ndarray:
        return sums / np.asarray(count, np.float32)

    def normalize(self, name: str, x: np.ndarray, parts: tuple[str, str] = NORM) -> np.ndarray:
        multiplier, offset = (self.tensors[f"{name}/{part}"] for part in parts)
        return x * multiplier + offset

    def scale(self, name: str, slope: str, x: np.ndarray) -> np.ndarray:
        return x * self.tensors[f"{name}/act/{slope}"]


class FixedPoint:
    """int32 values in int64, before what leaves int32 becomes its end."""

    dtype = np.int64
    limits = (np.iinfo(np.int32).min, np.iinfo(np.int32).max)

    def __init__(self, quantized: fixed_point.Quantized):
        self.tensors = quantized.tensors
        self._shifts = quantized.shifts

    def from_sum(self, name: str, sums: np.ndarray) -> np.ndarray:
        return shifted(sums, self._shifts[name])

    def mean(self, sums: np.ndarray, count: int | np.ndarray) -> np.ndarray:
        return (2 * sums + count) // (2 * count)

    def normalize(self, name: str, x: np.ndarray, parts: tuple[str, str] = NORM) -> np.ndarray:
        multiplier, offset = (self.tensors[f"{name}/{part}"].astype(np.int64) for part in parts)
        return shifted(x * multiplier, self._shifts[name]) + offset

    def scale(self, name: str, slope: str, x: np.ndarray) -> np.ndarray:
        return shifted(x * self.tensors[f"{name}/act/{slope}"], self._shifts[f"{name}/act"])


def shifted(x: np.ndarray, shift: int) -> np.ndarray:
    """Returns `x / 2**shift`, rounded to the nearest, halves up."""
    return (x + (1 << shift >> 1)) >> shift
