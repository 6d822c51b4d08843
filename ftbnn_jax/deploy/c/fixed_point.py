"""A network whose every number is an integer: how it is quantised, and its exact emulation.

A real number x between the layers is the int32 `round(x * 2**fraction_bits)`. A layer's parameters are
integers that share one shift: `y = saturate(offset + shifted(x * multiplier, shift))`, with
`shifted(v, s) = floor((v + 2**s // 2) / 2**s)`. What leaves int32 becomes its end, and is counted.
Weights of real convolutions and of the classifier are int16. The stem reads pixel values by a table of
int16, with weights such that its sums fit into int32.
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
# A pixel takes 13 bits and a sign, so that the stem's weights have some 12 to 15 within int32.
_PIXEL_BITS = 13
_WEIGHT_BITS = 15
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
      shifts: under the names of what is shifted, such as `block1_1/bn`, `block1_1/act`, `head`.
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

    mean, std = tables.standardization(artifact.pixel_mean, artifact.pixel_std, artifact.channels)
    pixels = (np.arange(256) - mean[:, None].astype(np.float64)) / std[:, None]
    found.tensors["stem/pixels"], pixel_shift = _mantissas(pixels, _PIXEL_BITS, np.int16)
    kernel = source["stem/conv/kernel"].astype(np.float64)
    # No sum can leave int32, one unit for the rounding of each weight included.
    room = _LARGEST / np.abs(found.tensors["stem/pixels"]).max() - kernel[..., 0].size
    heaviest = np.abs(kernel).sum((0, 1, 2)).max()
    bits = min(_WEIGHT_BITS, math.floor(math.log2(room * np.abs(kernel).max() / max(heaviest, 1e-30))))
    found.tensors["stem/conv/kernel"], kernel_shift = _mantissas(kernel, bits, np.int16)
    _norm(found, "stem/bn", pixel_shift + kernel_shift)
    _activation(found, "stem")
    for block in network.blocks:
        name = block.plan.name
        _norm(found, f"{name}/bn", 0)
        _activation(found, name)
        if block.plan.shortcut == "conv":
            _weights(found, f"{name}/shortcut_conv")
            _norm(found, f"{name}/shortcut_bn", fraction_bits)
    _weights(found, "head")
    found.tensors["head/bias"] = _fixed("head/bias", source["head/bias"], fraction_bits)
    return found


def _mantissas(values: np.ndarray, bits: int, dtype: Any) -> tuple[np.ndarray, int]:
    """Returns `round(values * 2**shift)`, at most `2**bits - 1`, and the largest such shift."""
    largest = float(np.abs(values).max())
    shift = min(_LARGEST_SHIFT, bits - math.frexp(largest)[1]) if largest else 0
    if shift >= 0 and np.abs(np.rint(values * 2.0**shift)).max() >= 2**bits:
        shift -= 1
    if shift < 0:
        raise UserError(f"a parameter of {largest:g} is too large for fixed point of {bits} bits")
    return np.rint(values.astype(np.float64) * 2.0**shift).astype(dtype), shift


def _fixed(name: str, values: np.ndarray, fraction_bits: int) -> np.ndarray:
    scaled = np.rint(values.astype(np.float64) * 2.0**fraction_bits)
    if np.abs(scaled).max() > _LARGEST:
        raise UserError(
            f"tensor {name!r}: {np.abs(values).max():g} does not fit into fixed point of "
            f"{fraction_bits} fraction bits"
        )
    return scaled.astype(np.int32)


def _weights(found: Quantized, name: str) -> None:
    weights = found.network.artifact.tensors[f"{name}/kernel"]
    found.tensors[f"{name}/kernel"], found.shifts[name] = _mantissas(weights, _WEIGHT_BITS, np.int16)


def _norm(found: Quantized, name: str, input_bits: int) -> None:
    """Quantises a batch norm whose input has `input_bits` fraction bits."""
    source = found.network.artifact.tensors
    multiplier = source[f"{name}/multiplier"].astype(np.float64)
    # Shifted, the product is to have fraction_bits: the multiplier takes the difference and the shift.
    scaled = multiplier * 2.0 ** (found.fraction_bits - input_bits)
    mantissas, found.shifts[name] = _mantissas(scaled, _PARAMETER_BITS, np.int32)
    found.tensors[f"{name}/multiplier"] = mantissas
    found.tensors[f"{name}/offset"] = _fixed(name, source[f"{name}/offset"], found.fraction_bits)


def _activation(found: Quantized, name: str) -> None:
    source = found.network.artifact.tensors
    slopes = [s for s in ("negative_slope", "positive_slope") if f"{name}/act/{s}" in source]
    if slopes:
        stacked = np.stack([source[f"{name}/act/{slope}"] for slope in slopes])
        mantissas, found.shifts[f"{name}/act"] = _mantissas(stacked, _PARAMETER_BITS, np.int32)
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
        x = _stem(x, tensors["stem/conv/kernel"], spec.stem_stride)
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
        logits = self._matmul("head", mean)
        return self._saturate(logits + tensors["head/bias"]).astype(np.int32), records

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
        return self._saturate(_shifted(product, self._q.shifts[name]))

    def _norm(self, name, x):
        multiplier = self._q.tensors[f"{name}/multiplier"].astype(np.int64)
        scaled = _shifted(x * multiplier, self._q.shifts[name])
        return self._saturate(scaled + self._q.tensors[f"{name}/offset"])

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
    """Convolves int64 pixels in float64, exactly: the sums fit into 32 bits."""
    size = kernel.shape[0]
    padding = size // 2
    out = convolution.output_size(x.shape[1], size, stride, padding)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0))).astype(np.float64)
    total = np.zeros((len(x), out, out, kernel.shape[-1]))
    end = stride * (out - 1) + 1
    for i in range(size):
        for j in range(size):
            total += padded[:, i : i + end : stride, j : j + end : stride] @ kernel[i, j].astype(
                np.float64
            )
    return total.astype(np.int64)
