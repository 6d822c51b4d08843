"""Real convolutions, and products of rows with a matrix, in integers of 8 or 16 bits.

A layer reads integers and sums their products with integer weights, exactly:

    y[o] = scale[o] * (sum over inputs of w[o] * x  +  bias[o])

- Weights are `round(W / scale)`, of 8 or 16 bits, each output channel with a scale of its own: the
  smallest with which the largest weight fits, and no sum can leave int32 whatever the inputs are.
- Where pixels reach the layer as `a * pixel + b` for each channel, it reads the bytes themselves: `a`
  is part of the weights, and `bias` is `w * b / a` summed over the taps that lie inside the image.
  Padding, which is 0 behind the preprocessing, adds nothing to either. So the sums are those of the
  preprocessed pixels with the rounded weights, at the border too.
- Other functions of a pixel are a table of integers, `round(value * 2**bits)`.
- Values are `round(x * 2**bits)`, up to 15 bits and a sign; what is beyond becomes the largest one and
  is reported. `bits` leaves four times the room that they take on some images.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftbnn_jax.deploy.c import geometry, operations
from ftbnn_jax.deploy.c.geometry import SLACK, Multiples
from ftbnn_jax.deploy.c.schedule import Network
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir

# As in kernels/ftbnn_integer.h.
_OUTPUTS = 16
# Inputs whose weights lie side by side, by the bits of a weight; the second and third of four form the
# other pairs.
_MANY = {8: 4, 16: 2}
_SWAPPED = [0, 2, 1, 3]
_LARGEST_SUM = 2**31 - 1
_TINY = float(np.finfo(np.float32).tiny)
_HEADROOM_BITS = 2
# Fractions of a pixel that a 0 behind the preprocessing may be, and how far from 0 it may lie.
_ZERO_BITS = 16
_FARTHEST_ZERO = 2**14
# By how much a function of a pixel may differ from a line, of its range.
_STRAIGHT = 1e-6
# How a value's bits are bounded, so that shifts of int64 and floats of 2**bits can do it.
_INPUT_BITS = {"single": (-100, 100), "fixed": (-30, 31)}


@dataclasses.dataclass(frozen=True, eq=False)
class IntegerLayer:
    """A layer in integers.

    Attributes:
      node: the convolution, or product of rows with a matrix.
      sizes: as `geometry.real_conv` gives them.
      real_bits: 8 or 16.
      reads: "bytes" (pixels), "table" (what a table has for them) or "values".
      bits: an input is `round(value * 2**bits)`; 0 for bytes.
      largest: the largest magnitude of an input.
      weights: int64 `[KH, KW, I / groups, O]`.
      scale: float32 `[O]`, of one unit of a sum.
      table: int64 `[channels, 256]`, what is read for a pixel; None for values.
      zeros: int64 `[channels]`, the pixel, in units of 2**-16, that is 0 behind the preprocessing; all 0
        but for bytes.
    """

    node: ir.Node
    sizes: dict[str, int]
    real_bits: int
    reads: str
    bits: int
    largest: int
    weights: np.ndarray
    scale: np.ndarray
    table: np.ndarray | None
    zeros: np.ndarray

    @property
    def name(self) -> str:
        """How reports call it."""
        return self.node.layer or self.node.name

    @property
    def is_small(self) -> bool:
        """Whether float32 holds every sum."""
        heaviest = np.abs(self.weights).sum((0, 1, 2)).max(initial=0)
        return int(heaviest) * self.largest < 2**24

    @functools.cached_property
    def bias(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is added to the sums: int64 `[kinds of rows, of columns, O]`; and the kinds of each."""
        s = self.sizes
        out_height = _positions(self.node, s) // s["out_width"]
        rows = _inside(out_height, s, "height", "stride_y", "dilation_y", "top", "kernel_height")
        columns = _inside(s["out_width"], s, "width", "stride_x", "dilation_x", "left", "kernel_width")
        (row_sets, row_kinds), (column_sets, column_kinds) = (
            np.unique(inside, axis=0, return_inverse=True) for inside in (rows, columns)
        )
        inputs, outputs = self.weights.shape[2], self.weights.shape[3] // s["groups"]
        zeros = self.zeros.reshape(s["groups"], inputs).repeat(outputs, axis=0)
        taps = np.einsum("hwio,oi->hwo", self.weights, zeros)
        total = np.einsum(
            "yh,xw,hwo->yxo", row_sets.astype(np.int64), column_sets.astype(np.int64), taps
        )
        half = 1 << (_ZERO_BITS - 1)
        return (half - total) >> _ZERO_BITS, row_kinds.reshape(-1), column_kinds.reshape(-1)

    def blocked(self) -> np.ndarray:
        """Returns the weights in the order of C: int8 or int16.

        `[groups, blocks of outputs, rows, runs, inputs / many, outputs, many]`; a run is what lies side
        by side in a row, and what is missing at its end, or at the end of the outputs, is 0.
        """
        many, groups = _MANY[self.real_bits], self.sizes["groups"]
        rows, columns, inputs, features = self.weights.shape
        joined = groups == 1 and self.sizes["dilation_x"] == 1
        runs, length = (1, columns * inputs) if joined else (columns, inputs)
        outputs = self.outputs
        w = self.weights.reshape(rows, runs, length, groups, features // groups)
        missing = [-length % many, -(features // groups) % outputs]
        w = np.pad(w, ((0, 0), (0, 0), (0, missing[0]), (0, 0), (0, missing[1])))
        w = w.reshape(rows, runs, -1, many, groups, w.shape[-1] // outputs, outputs)
        w = w.transpose(4, 5, 0, 1, 2, 6, 3)
        if many == len(_SWAPPED) and self.reads != "bytes":
            w = w[..., _SWAPPED]
        return np.ascontiguousarray(w).astype(np.int8 if self.real_bits == 8 else np.int16)

    @property
    def outputs(self) -> int:
        """How many outputs' weights lie side by side."""
        return min(_OUTPUTS, self.sizes["features"] // self.sizes["groups"])

    def padded_bias(self) -> np.ndarray:
        """Returns the numbers of `bias` as C reads them, int32, with what vectors read behind them."""
        return np.concatenate([self.bias[0].reshape(-1), np.zeros(SLACK, np.int64)]).astype(np.int32)

    def narrow_table(self) -> np.ndarray:
        """Returns the table as C reads it, int16."""
        return self.table.astype(np.int16)

    def with_bias(self, sums: np.ndarray) -> np.ndarray:
        """Returns sums `[N, ..., O]` with what is added at each position."""
        bias, rows, columns = self.bias
        return sums + bias[rows[:, None], columns].reshape(sums.shape[1:]) if self.has_bias else sums

    @property
    def has_bias(self) -> bool:
        """Whether anything is added to the sums."""
        return bool(self.bias[0].any())


def _positions(node: ir.Node, sizes: Mapping[str, int]) -> int:
    """Returns the positions of the output."""
    if node.op == "dot":
        return sizes["out_width"]
    span = (sizes["kernel_height"] - 1) * sizes["dilation_y"] + 1
    (low, high) = ((0, 0), *node.attributes["padding"])[-2]
    return ((sizes["height"] + low + high - span) // sizes["stride_y"] + 1) * sizes["out_width"]


def _inside(count, sizes, size, stride, dilation, before, kernel) -> np.ndarray:
    """Returns which taps along one axis lie inside the input: booleans `[positions, taps]`."""
    at = np.arange(count)[:, None] * sizes[stride] - sizes[before]
    at = at + np.arange(sizes[kernel]) * sizes[dilation]
    return (at >= 0) & (at < sizes[size])


def nodes(network: Network) -> list[ir.Node]:
    """Returns the nodes that are layers in integers, in order."""
    kernels = [loop.kernel for loop in network.loops]
    return [node for node in kernels if node is not None and network.is_integer(node)]


def reads_values(network: Network, node: ir.Node) -> bool:
    """Whether a layer reads what others have computed, not pixels."""
    return not (node.op == "conv" and node.inputs[0] in network.tables)


def input_bits(network: Network, largest: Mapping[str, float], fixed: bool) -> tuple[int, ...]:
    """Returns `bits` of every layer that reads values, in order.

    Args:
      network: its loops.
      largest: the largest magnitude of an input of each layer on some images, by the name of its node.
      fixed: whether values are fixed point numbers.
    """
    low, high = _INPUT_BITS["fixed" if fixed else "single"]
    found = []
    for node in nodes(network):
        if reads_values(network, node):
            width = _width(_kernel(network, node), network.real_bits)
            bits = width - math.frexp(largest[node.name])[1] - _HEADROOM_BITS
            found.append(min(max(bits, low), high))
    return tuple(found)


def quantize(
    network: Network, bits: Sequence[int], pixel_tables: Mapping[str, np.ndarray]
) -> dict[str, IntegerLayer]:
    """Returns the layers in integers by the name of their node.

    Args:
      network: its loops.
      bits: from `input_bits`.
      pixel_tables: what arrays that depend on a pixel alone have for each, float32 `[channels, 256]`.
    """
    found = {}
    readers = [node for node in nodes(network) if reads_values(network, node)]
    if len(bits) != len(readers):
        raise UserError(f"must be {len(readers)} numbers", f"input_bits={tuple(bits)}")
    left = iter(bits)
    for node in nodes(network):
        kernel = _kernel(network, node)
        if not np.isfinite(kernel).all():
            raise UserError(
                f"{operations.where(node)}: a weight is not finite; C takes finite ones only"
            )
        if reads_values(network, node):
            largest = 2 ** _width(kernel, network.real_bits) - 1
            found[node.name] = _layer(network, node, kernel, "values", next(left), largest)
        else:
            found[node.name] = _pixel_layer(network, node, kernel, pixel_tables[node.inputs[0]])
    return found


def _kernel(network: Network, node: ir.Node) -> np.ndarray:
    """Returns a layer's weights, float64 `[KH, KW, I / groups, O]`."""
    found: Any = network.kernels.get(node.name)
    if isinstance(found, Multiples):
        found = found.values.astype(np.float32) * found.scale
    elif found is None:
        found = network.constants[node.inputs[1]]
    kernel = np.asarray(found, np.float64)
    return kernel.reshape((1,) * (4 - kernel.ndim) + kernel.shape)


def _width(kernel: np.ndarray, real_bits: int) -> int:
    """Returns how many bits an input may have beside its sign, so that a sum in int32 has room for both.

    As many as are left beside whole weights, or half of what there is.
    """
    each, heaviest = np.abs(kernel).max((0, 1, 2)), np.abs(kernel).sum((0, 1, 2))
    terms = max(float((heaviest / np.maximum(each, _TINY)).max()), 1.0)
    room = 31 - math.log2(terms)
    width = math.floor(max(room - (real_bits - 1), (room + _HEADROOM_BITS) / 2))
    most = 30 - math.ceil(math.log2(kernel[..., 0].size))
    return max(1, min(15, width, most))


def _layer(network, node, kernel, reads, bits, largest, table=None, zeros=None) -> IntegerLayer:
    sizes = geometry.real_conv(node, network.shapes, network.constants)
    farthest = 0 if zeros is None else int(np.abs(zeros).max()) >> _ZERO_BITS
    weights, scale = _weights(kernel, network.real_bits, largest + farthest + 1, _TINY * 2.0**bits)
    scale = (scale * 2.0**-bits).astype(np.float32)
    zeros = np.zeros(sizes["channels"], np.int64) if zeros is None else zeros
    return IntegerLayer(
        node, sizes, network.real_bits, reads, bits, largest, weights, scale, table, zeros
    )


def _weights(
    kernel: np.ndarray, real_bits: int, largest: int, least_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns integer weights, int64, and the scale of each output, float64 `[O]`.

    No sum of products with inputs of at most `largest` leaves int32, as every weight is rounded.
    """
    rounded = kernel[..., 0].size * largest / 2
    each, heaviest = np.abs(kernel).max((0, 1, 2)), np.abs(kernel).sum((0, 1, 2))
    scale = np.maximum(each / (2 ** (real_bits - 1) - 1), heaviest * largest / (_LARGEST_SUM - rounded))
    scale = np.maximum(scale, least_scale)
    return np.rint(kernel / scale).astype(np.int64), scale


def _pixel_layer(network, node, kernel, table) -> IntegerLayer:
    """Returns a layer that reads bytes, or what a table of integers has for them."""
    line = _line(table) if network.real_bits == 8 else None
    if line is not None:
        slope, zeros = line
        inputs = kernel.shape[2]
        groups = len(slope) // inputs
        of_group = slope.reshape(groups, inputs).repeat(kernel.shape[3] // groups, axis=0)
        bytes_of = np.broadcast_to(np.arange(256), table.shape)
        return _layer(network, node, kernel * of_group.T, "bytes", 0, 255, bytes_of, zeros)
    width = _width(kernel, network.real_bits)
    bits = width - math.frexp(float(np.abs(table).max()))[1]
    found = np.rint(table.astype(np.float64) * 2.0**bits).astype(np.int64)
    largest = 2**width - 1
    return _layer(network, node, kernel, "table", bits, largest, found.clip(-largest, largest))


def _line(table: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns slope and zero of a function of a pixel, `[channels]`, the zero in units of 2**-16 pixels.

    None unless all are lines whose zero is not far away.
    """
    table = table.astype(np.float64)
    slope = (table[:, -1] - table[:, 0]) / 255
    fitted = slope[:, None] * np.arange(256) + table[:, :1]
    if np.abs(fitted - table).max() > _STRAIGHT * np.abs(table).max() or not slope.all():
        return None
    zeros = -table[:, 0] / slope
    if np.abs(zeros).max() > _FARTHEST_ZERO:
        return None
    return slope, np.rint(zeros * 2**_ZERO_BITS).astype(np.int64)
