"""A network whose every number is an integer: how it is quantised, and what is lost by that.

A real number x between the layers is the int32 `round(x * 2**fraction_bits)`. A layer's parameters are
integers that share one shift: `y = saturate(offset + shifted(x * multiplier, shift))`, with
`shifted(v, s) = floor((v + 2**s // 2) / 2**s)`. What leaves int32 becomes its end, and is counted.
Real convolutions sum in int64, with weights as fine as that allows: a coarser stem, or shortcut, turns
signs of small activations, and with them classes. The classifier's int16 weights are the artifact's; its
scale and bias follow as a batch norm's would.
"""

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ftbnn_jax.deploy.c import schedule, tables
from ftbnn_jax.errors import UserError

_LARGEST = np.iinfo(np.int32).max
_LARGEST_SUM = np.iinfo(np.int64).max
_PIXEL_BITS = 24
_PARAMETER_BITS = 30
_LARGEST_SHIFT = 60
# The largest activation seen while calibrating is given this factor of room.
_HEADROOM_BITS = 3
_FRACTION_BITS = (4, 30)
# What a comparison may take for 0.
_TINY = np.finfo(np.float32).tiny
# Values whose fraction bits are their own: pixels, and the stem's sums.
_OWN_BITS = ("stem/pixels", "stem/conv/")


class _DoesNotFit(UserError):
    """A parameter is too large."""


def choose_fraction_bits(network: schedule.Network, largest: Mapping[str, float]) -> int:
    """Returns how many fraction bits leave eight times the room that values take on some images.

    Fewer, where a parameter needs that: the norm of a channel that hardly changes has a large factor.

    Args:
      network: the layers.
      largest: the largest magnitude of each value, under the names of `emulator.Trace`.
    """
    values = {name: x for name, x in largest.items() if not name.startswith(_OWN_BITS)}
    values["head/kernel"] = values["head/kernel"] * 2.0 ** -_head_shift(network)
    whole = math.frexp(max(values.values()))[1] + _HEADROOM_BITS
    low, high = _FRACTION_BITS
    bits = min(max(31 - whole, low), high)
    # Where nothing fits, `quantize` says what does not.
    return _most_that_fit(network, bits) or bits


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A network's constants in fixed point.

    Attributes:
      network: the layers.
      fraction_bits: of the real numbers between the layers.
      tensors: int16 and int32, under the names of the artifact's float32 ones, and `stem/pixels`.
      shifts: under the names of what is shifted, such as `stem/conv/kernel` (its sums), `block1_1/bn`,
        `block1_1/act`, `head`.
    """

    network: schedule.Network
    fraction_bits: int
    tensors: dict[str, np.ndarray]
    shifts: dict[str, int]

    def tables(self) -> list[tables.Table]:
        """Returns the constants as C arrays."""
        return [tables.Table(tables.name_of(name), t) for name, t in sorted(self.tensors.items())]

    def zeroed(self) -> dict[str, int]:
        """Returns how many factors and slopes of each tensor are 0, and were not; without others."""
        source = self.network.described.tensors
        factors = [n for n in self.tensors if n.endswith(("/multiplier", "_slope", "head/scale"))]
        lost = {n: int(np.sum((self.tensors[n] == 0) & (np.abs(source[n]) >= _TINY))) for n in factors}
        return {name: count for name, count in sorted(lost.items()) if count}


def quantize(network: schedule.Network, fraction_bits: int) -> Quantized:
    """Quantises a network.

    Args:
      network: the layers.
      fraction_bits: from `choose_fraction_bits`.

    Raises:
      UserError: a parameter is too large, or not finite.
    """
    try:
        return _quantize(network, fraction_bits)
    except _DoesNotFit as error:
        fewer = _most_that_fit(network, fraction_bits - 1)
        instead = f"{fewer} would do" if fewer else "no fewer would do; without --fixed_point it fits"
        raise UserError(f"{error} of {fraction_bits} fraction bits; {instead}") from None


def _most_that_fit(network: schedule.Network, fraction_bits: int) -> int | None:
    """Returns how many fraction bits all parameters fit into, at most `fraction_bits`, if any do."""
    for bits in range(fraction_bits, _FRACTION_BITS[0] - 1, -1):
        with contextlib.suppress(_DoesNotFit):
            return _quantize(network, bits).fraction_bits
    return None


def _quantize(network: schedule.Network, fraction_bits: int) -> Quantized:
    source = network.described.tensors
    found = Quantized(network, fraction_bits, {}, {})
    for name, tensor in source.items():
        tables.check_finite(name, tensor)

    mean, std = tables.standardization(network.described.preprocessing)
    pixels = (np.arange(256) - mean[:, None].astype(np.float64)) / std[:, None]
    found.tensors["stem/pixels"], pixel_shift = _mantissas("stem/pixels", pixels, _PIXEL_BITS)
    largest = int(np.abs(found.tensors["stem/pixels"]).max())
    kernel_shift = _weights(found, "stem/conv", largest)
    # What is left of a sum is as much as can fit into int32.
    shift = max(0, (_heaviest(found.tensors["stem/conv/kernel"]) * largest).bit_length() - 31)
    found.shifts["stem/conv/kernel"] = shift
    _norm(found, "stem/bn", pixel_shift + kernel_shift - shift)
    _activation(found, "stem")
    for block in network.blocks:
        name = block.plan.name
        _norm(found, f"{name}/bn", 0)
        _activation(found, name)
        if block.plan.shortcut == "conv":
            shortcut = f"{name}/shortcut_conv"
            found.shifts[f"{shortcut}/kernel"] = _weights(found, shortcut, 2**31)
            _norm(found, f"{name}/shortcut_bn", fraction_bits)
    found.tensors["head/kernel"] = source["head/kernel"]
    found.shifts["head/kernel"] = shift = _head_shift(network)
    _norm(found, "head", fraction_bits - shift, ("scale", "bias"))
    return found


def _head_shift(network: schedule.Network) -> int:
    """Returns the shift after which the largest class's sums are its logits, or up to twice that."""
    largest = float(network.described.tensors["head/scale"].max())
    return min(max(0, -math.frexp(largest)[1]), _LARGEST_SHIFT)


def _mantissas(name: str, values: np.ndarray, bits: int, exponent: int = 0) -> tuple[np.ndarray, int]:
    """Quantises `scaled = values * 2**exponent`.

    Returns:
      int32 `round(scaled * 2**shift)`, at most `2**bits - 1`, and the largest such shift.
    """
    scaled = values.astype(np.float64) * 2.0**exponent
    largest = float(np.abs(scaled).max())
    shift = min(_LARGEST_SHIFT, bits - math.frexp(largest)[1]) if largest else 0
    if shift >= 0 and np.abs(np.rint(scaled * 2.0**shift)).max() >= 2**bits:
        shift -= 1
    if shift < 0:
        raise _does_not_fit(name, values)
    return np.rint(scaled * 2.0**shift).astype(np.int32), shift


def _fixed(name: str, values: np.ndarray, fraction_bits: int) -> np.ndarray:
    scaled = np.rint(values.astype(np.float64) * 2.0**fraction_bits)
    if np.abs(scaled).max() > _LARGEST:
        raise _does_not_fit(name, values)
    return scaled.astype(np.int32)


def _does_not_fit(name: str, values: np.ndarray) -> _DoesNotFit:
    return _DoesNotFit(f"tensor {name!r}: {np.abs(values).max():.3g} does not fit into fixed point")


def _heaviest(kernel: np.ndarray) -> Any:
    """Returns the largest sum of one output's absolute weights, a Python number."""
    wide = np.abs(kernel.astype(np.result_type(kernel, np.int64)))
    return wide.sum(axis=tuple(range(kernel.ndim - 1))).max().item()


def _weights(found: Quantized, name: str, largest: int) -> int:
    """Quantises a kernel whose inputs are at most `largest`, so that no sum can leave int64.

    Returns:
      The fraction bits of the weights.
    """
    kernel = found.network.described.tensors[f"{name}/kernel"].astype(np.float64)
    # One unit for the rounding of each weight.
    room = _LARGEST_SUM // largest - kernel[..., 0].size
    share = np.abs(kernel).max() / max(_heaviest(kernel), 1e-30)
    bits = min(_PARAMETER_BITS, math.floor(math.log2(max(room * share, 1))))
    found.tensors[f"{name}/kernel"], shift = _mantissas(f"{name}/kernel", kernel, bits)
    return shift


def _norm(
    found: Quantized, name: str, input_bits: int, parts: tuple[str, str] = ("multiplier", "offset")
) -> None:
    """Quantises a batch norm whose input has `input_bits` fraction bits."""
    source = found.network.described.tensors
    multiplier, offset = (f"{name}/{part}" for part in parts)
    # Shifted, the product is to have fraction_bits: the multiplier takes the difference and the shift.
    found.tensors[multiplier], found.shifts[name] = _mantissas(
        multiplier, source[multiplier], _PARAMETER_BITS, found.fraction_bits - input_bits
    )
    found.tensors[offset] = _fixed(offset, source[offset], found.fraction_bits)


def _activation(found: Quantized, name: str) -> None:
    source = found.network.described.tensors
    slopes = [f"{name}/act/{s}_slope" for s in ("negative", "positive")]
    slopes = [slope for slope in slopes if slope in source]
    if slopes:
        stacked = np.stack([source[slope] for slope in slopes])
        largest = slopes[np.abs(stacked).max(-1).argmax()]
        mantissas, found.shifts[f"{name}/act"] = _mantissas(largest, stacked, _PARAMETER_BITS)
        found.tensors.update(zip(slopes, mantissas, strict=True))
