"""A network whose every number is an integer: how it is quantised, and its exact emulation.

A real number x between the layers is the int32 `round(x * 2**fraction_bits)`. A layer's parameters are
integers that share one shift: `y = saturate(offset + shifted(x * multiplier, shift))`, with
`shifted(v, s) = floor((v + 2**s // 2) / 2**s)`. What leaves int32 becomes its end, and is counted.
Real convolutions sum in int64, with weights as fine as that allows: a coarser stem, or shortcut, turns
signs of small activations, and with them classes. The classifier's int16 weights are the artifact's; its
scale and bias follow as a batch norm's would.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.deploy.c import lowering, tables
from ftbnn_jax.errors import UserError
from ftbnn_jax.ops import convolution

_LARGEST = np.iinfo(np.int32).max
_LARGEST_SUM = np.iinfo(np.int64).max
_PIXEL_BITS = 24
_PARAMETER_BITS = 30
_LARGEST_SHIFT = 60
# The largest activation seen while calibrating is given this factor of room.
_HEADROOM_BITS = 3
_FRACTION_BITS = (4, 24)


def calibrate(runtime: runtime_lib.Runtime, images: np.ndarray) -> int:
    """Returns how many fraction bits leave eight times the room that activations take on some images.

    Args:
      runtime: the network in single precision.
      images: uint8 `[N, H, W, C]`.
    """
    logits, records = runtime.trace(images)
    largest = max(float(np.abs(np.asarray(x)).max()) for x in (logits, *(x for x, _ in records)))
    whole = math.frexp(largest)[1] + _HEADROOM_BITS
    low, high = _FRACTION_BITS
    return int(np.clip(31 - whole, low, high))


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

    network: lowering.Network
    fraction_bits: int
    tensors: dict[str, np.ndarray]
    shifts: dict[str, int]

    def tables(self) -> list[tables.Table]:
        """Returns the constants as C arrays."""
        return [tables.Table(tables.name_of(name), t) for name, t in sorted(self.tensors.items())]


def quantize(network: lowering.Network, fraction_bits: int) -> Quantized:
    """Quantises a network.

    Args:
      network: the layers.
      fraction_bits: from `calibrate`.

    Raises:
      UserError: a parameter is too large, or not finite.
    """
    artifact = network.artifact
    source = artifact.tensors
    found = Quantized(network, fraction_bits, {}, {})
    for name, tensor in source.items():
        tables.check_finite(name, tensor)

    mean, std = tables.standardization(artifact.preprocessing)
    pixels = (np.arange(256) - mean[:, None].astype(np.float64)) / std[:, None]
    found.tensors["stem/pixels"], pixel_shift = _mantissas(pixels, _PIXEL_BITS)
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
    # Shifted, the largest class's sums are as large as its logits, or up to twice that.
    found.tensors["head/kernel"] = source["head/kernel"]
    shift = max(0, -math.frexp(float(source["head/scale"].max()))[1])
    found.shifts["head/kernel"] = shift = min(shift, _LARGEST_SHIFT)
    _norm(found, "head", fraction_bits - shift, ("scale", "bias"))
    return found


def _mantissas(values: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """Returns int32 `round(values * 2**shift)`, at most `2**bits - 1`, and the largest such shift."""
    largest = float(np.abs(values).max())
    shift = min(_LARGEST_SHIFT, bits - math.frexp(largest)[1]) if largest else 0
    if shift >= 0 and np.abs(np.rint(values * 2.0**shift)).max() >= 2**bits:
        shift -= 1
    if shift < 0:
        raise UserError(f"a parameter of {largest:g} is too large for fixed point of {bits} bits")
    return np.rint(values.astype(np.float64) * 2.0**shift).astype(np.int32), shift


def _fixed(name: str, values: np.ndarray, fraction_bits: int) -> np.ndarray:
    scaled = np.rint(values.astype(np.float64) * 2.0**fraction_bits)
    if np.abs(scaled).max() > _LARGEST:
        raise UserError(
            f"tensor {name!r}: {np.abs(values).max():g} does not fit into fixed point of "
            f"{fraction_bits} fraction bits"
        )
    return scaled.astype(np.int32)


def _heaviest(kernel: np.ndarray) -> Any:
    """Returns the largest sum of one output's absolute weights, a Python number."""
    wide = np.abs(kernel.astype(np.result_type(kernel, np.int64)))
    return wide.sum(axis=tuple(range(kernel.ndim - 1))).max().item()


def _weights(found: Quantized, name: str, largest: int) -> int:
    """Quantises a kernel whose inputs are at most `largest`, so that no sum can leave int64.

    Returns:
      The fraction bits of the weights.
    """
    kernel = found.network.artifact.tensors[f"{name}/kernel"].astype(np.float64)
    # One unit for the rounding of each weight.
    room = _LARGEST_SUM // largest - kernel[..., 0].size
    share = np.abs(kernel).max() / max(_heaviest(kernel), 1e-30)
    bits = min(_PARAMETER_BITS, math.floor(math.log2(max(room * share, 1))))
    found.tensors[f"{name}/kernel"], shift = _mantissas(kernel, bits)
    return shift


def _norm(
    found: Quantized, name: str, input_bits: int, parts: tuple[str, str] = ("multiplier", "offset")
) -> None:
    """Quantises a batch norm whose input has `input_bits` fraction bits."""
    source = found.network.artifact.tensors
    multiplier, offset = (f"{name}/{part}" for part in parts)
    # Shifted, the product is to have fraction_bits: the multiplier takes the difference and the shift.
    scaled = source[multiplier] * 2.0 ** (found.fraction_bits - input_bits)
    found.tensors[multiplier], found.shifts[name] = _mantissas(scaled, _PARAMETER_BITS)
    found.tensors[offset] = _fixed(offset, source[offset], found.fraction_bits)


def _activation(found: Quantized, name: str) -> None:
    source = found.network.artifact.tensors
    slopes = [s for s in ("negative_slope", "positive_slope") if f"{name}/act/{s}" in source]
    if slopes:
        stacked = np.stack([source[f"{name}/act/{slope}"] for slope in slopes])
        mantissas, found.shifts[f"{name}/act"] = _mantissas(stacked, _PARAMETER_BITS)
        found.tensors.update({f"{name}/act/{s}": m for s, m in zip(slopes, mantissas, strict=True)})


class Emulator:
    """Computes what the C program in fixed point computes, integer by integer, in numpy.

    Args:
      quantized: the network.
      runtime: of the same artifact; it convolves signs.

    Attributes:
      saturated: numbers that have left their range so far.
    """

    def __init__(self, quantized: Quantized, runtime: runtime_lib.Runtime):
        self._q = quantized
        self._runtime = runtime
        self.saturated = 0

    def trace(self, images: np.ndarray) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
        """Runs a batch.

        Args:
          images: uint8 `[N, image_size, image_size, channels]`.

        Returns:
          Logits, int32 `[N, classes]`; input, int64, and integers, int32, of each binary convolution.
        """
        artifact = self._q.network.artifact
        spec, tensors = artifact.spec, self._q.tensors
        pixels = tensors["stem/pixels"].astype(np.int64)
        x = np.stack([pixels[c][images[..., c]] for c in range(artifact.channels)], axis=-1)
        x = _stem(x, tensors["stem/conv/kernel"].astype(np.int64), spec.stem_stride)
        x = self._saturate(_shifted(x, self._q.shifts["stem/conv/kernel"]))
        x = self._activation("stem", spec.stem_activation, self._norm("stem/bn", x))
        if spec.stem_pool:
            x = _windows(x, 3, 1, np.iinfo(np.int64).min).max(0)
        records = []
        for plan in spec.plan():
            shortcut = self._shortcut(plan, x)
            if plan.shortcut == "duplicate":
                x = np.concatenate([x, x], axis=-1)
            sums = np.asarray(self._runtime.binary_conv(plan, np.sign(x).astype(np.float32)))
            records.append((x, sums))
            y = self._norm(f"{plan.name}/bn", sums.astype(np.int64))
            if shortcut is not None:
                y = self._saturate(y + shortcut)
            x = self._activation(plan.name, plan.activation, y)
        mean = _rounded_ratio(x.sum((1, 2)), x.shape[1] * x.shape[2])
        logits = self._norm("head", self._matmul("head", mean), ("scale", "bias"))
        return logits.astype(np.int32), records

    def _shortcut(self, plan, x):
        if plan.shortcut == "none":
            return None
        if plan.shortcut == "identity":
            return x
        if plan.shortcut == "duplicate":
            mean = _rounded_ratio(_windows(x, 3, 1, 0).sum(0), 9)
            return np.concatenate([mean, mean], axis=-1)
        count = _windows(np.ones_like(x[:1, ..., :1]), 2, 0, 0).sum(0)
        mean = _rounded_ratio(_windows(x, 2, 0, 0).sum(0), count)
        return self._norm(f"{plan.name}/shortcut_bn", self._matmul(f"{plan.name}/shortcut_conv", mean))

    def _matmul(self, name, x):
        kernel = self._q.tensors[f"{name}/kernel"].astype(np.int64)
        product = x @ kernel.reshape(kernel.shape[-2:])
        return self._saturate(_shifted(product, self._q.shifts[f"{name}/kernel"]))

    def _norm(self, name, x, parts=("multiplier", "offset")):
        multiplier, offset = (self._q.tensors[f"{name}/{part}"].astype(np.int64) for part in parts)
        return self._saturate(_shifted(x * multiplier, self._q.shifts[name]) + offset)

    def _activation(self, name, kind, x):
        if kind == "none":
            return x
        if kind == "relu":
            return np.maximum(x, 0)

        def scaled(slope):
            mantissas = self._q.tensors[f"{name}/act/{slope}"].astype(np.int64)
            return _shifted(x * mantissas, self._q.shifts[f"{name}/act"])

        positive = x if kind == "prelu" else scaled("positive_slope")
        return self._saturate(np.where(x > 0, positive, scaled("negative_slope")))

    def _saturate(self, x):
        low, high = np.iinfo(np.int32).min, _LARGEST
        self.saturated += int(((x < low) | (x > high)).sum())
        return np.clip(x, low, high)


def _shifted(x: np.ndarray, shift: int) -> np.ndarray:
    return (x + (1 << shift >> 1)) >> shift


def _rounded_ratio(x: np.ndarray, divisor: int | np.ndarray) -> np.ndarray:
    return (2 * x + divisor) // (2 * divisor)


def _windows(x: np.ndarray, size: int, padding: int, outside: int) -> np.ndarray:
    """Returns the `size * size` values of every window of stride 2: `[size * size, N, H', W', C]`.

    H' is `ceil(H / 2)`; the input is padded with `outside`, by `padding` at the start and at the end as
    needed.
    """
    padded = np.pad(x, ((0, 0), (padding, 2), (padding, 2), (0, 0)), constant_values=outside)
    rows, columns = (-(-n // 2) for n in x.shape[1:3])
    return np.stack(
        [
            padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
            for i in range(size)
            for j in range(size)
        ]
    )


def _stem(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Convolves int64 pixels with an int64 kernel."""
    size, _, _, features = kernel.shape
    padding = size // 2
    out = convolution.output_size(x.shape[1], size, stride, padding)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    total = np.zeros((len(x), out, out, features), np.int64)
    end = stride * (out - 1) + 1
    for i in range(size):
        for j in range(size):
            total += padded[:, i : i + end : stride, j : j + end : stride] @ kernel[i, j]
    return total
