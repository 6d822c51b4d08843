"""Sizes of products of numbers, as the kernels in C take them."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np

from ftbnn_jax.graph import ir
from ftbnn_jax.ops.packed import bits

# As in kernels/ftbnn_binary.h: positions convolved at once, elements touched past the last one, output
# channels whose weights lie together.
BLOCK = 4
SLACK = 16
TILE = 32


class Multiples(NamedTuple):
    """A matrix of multiples of one number for each column, as it is stored.

    Attributes:
      values: int16 `[I, O]`.
      scale: float32 `[O]`.
      name: of the multiples in the graph.
      scale_name: of the scale.
    """

    values: np.ndarray
    scale: np.ndarray
    name: str
    scale_name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """A binary product.

    Attributes:
      name: of its layer in reports.
      node: the operation.
      shape: of its signs for one image.
      result: of its integers, likewise.
      kernels: booleans `[KH, KW, I_g, O_g]`, True for +1, one a group.
    """

    name: str
    node: ir.Node
    shape: tuple[int, ...]
    result: tuple[int, ...]
    kernels: tuple[np.ndarray, ...]

    @functools.cached_property
    def _conv(self):
        return ir.packed_conv(self.node.attributes)

    @property
    def form(self) -> str:
        """One of `ops.packed.convolution.FORMS`."""
        return self.node.attributes["form"]

    @property
    def group_inputs(self) -> tuple[int, ...]:
        """Input channels of each group."""
        return self.node.attributes["in_features"]

    @property
    def group_outputs(self) -> tuple[int, ...]:
        """Output channels of each group."""
        return self.node.attributes["out_features"]

    @property
    def features(self) -> int:
        """Output channels."""
        return sum(self.group_outputs)

    @property
    def positions(self) -> int:
        """Positions of the output."""
        return math.prod(self.result[:-1])

    @property
    def plane_shape(self) -> tuple[int, int]:
        """Height and width of the input; rows of a matrix are positions along one line."""
        if self.node.op == "binary_dot":
            return 1, math.prod(self.shape[:-1])
        return (1, *self.shape[1:-1])[-2:]

    @property
    def out_shape(self) -> tuple[int, int]:
        """Height and width of the output."""
        return self._conv.output_shape(*self.plane_shape)

    @property
    def geometry(self) -> Any:
        """Kernel, strides, padding and dilation, as `ops.packed.convolution.PackedConv` has them."""
        return self._conv

    @property
    def plane(self) -> int:
        """Words of one bit of every input value, with those of a position outside."""
        return (math.prod(self.plane_shape) + 1) * sum(map(bits.words_for, self.group_inputs))

    @property
    def sign_words(self) -> int:
        """Words of all bits of its signs."""
        return self.plane * (2 if self.form == "ternary" else 1)

    @property
    def taps(self) -> int:
        """Positions of its kernel."""
        return math.prod(self._conv.kernel_size)

    @property
    def multiply_adds(self) -> int:
        """Binary multiply-adds for one image."""
        return self.positions * sum(map(math.prod, map(np.shape, self.kernels)))

    @property
    def windows(self) -> int:
        """Words that `ftbnn_convolve` takes for itself."""
        window = max(
            self.taps * (i // 32) + bits.words_for(self.taps * (i % 32)) for i in self.group_inputs
        )
        position = sum(map(bits.words_for, self.group_inputs))
        return 2 * (position + BLOCK * self.taps + BLOCK * window) + self.plane_shape[0]


def dense(node: ir.Node, shapes, constants) -> bool:
    """Whether a product of matrices is one of rows with a constant matrix."""
    (of_x, of_kernel), batch = node.attributes["contracting"], node.attributes["batch"]
    x, kernel = (shapes[n] if n in shapes else constants[n] for n in node.inputs)
    rows = batch == ((), ()) and of_x == (len(x.shape) - 1,)
    return rows and node.inputs[1] in constants and len(kernel.shape) == 2 and len(of_kernel) == 1


def dense_kernel(node: ir.Node, nodes, constants) -> Any:
    """Returns the matrix `[I, O]` of a product of rows, or multiples and scale that it is made of."""
    axis = node.attributes["contracting"][1][0]
    name = node.inputs[1]
    mul = nodes.get(name)
    if mul is not None and mul.op == "mul" and not axis:
        cast = nodes.get(mul.inputs[0])
        if cast is not None and cast.op == "cast" and constants[cast.inputs[0]].dtype == np.int16:
            scale = constants[mul.inputs[1]]
            if scale.shape == (1, constants[name].shape[1]):
                return Multiples(
                    constants[cast.inputs[0]], scale.reshape(-1), cast.inputs[0], mul.inputs[1]
                )
    kernel = constants[name]
    return kernel.T if axis else kernel


def is_layer(node: ir.Node, shapes, constants) -> bool:
    """Whether a node is a real convolution, or product of rows, with a constant kernel."""
    return node.op == "conv" or (node.op == "dot" and dense(node, shapes, constants))


def real_conv(node: ir.Node, shapes, constants) -> dict[str, int] | None:
    """Returns the fields of the real convolution that a node is in C; None where it is none."""
    x = shapes[node.inputs[0]].shape
    result = shapes[node.name].shape
    if node.op == "dot":
        if not dense(node, shapes, constants):
            return None
        rows = math.prod(x[:-1])
        return {
            "height": 1,
            "width": rows,
            "channels": x[-1],
            "out_width": rows,
            "kernel_height": 1,
            "kernel_width": 1,
            "stride_y": 1,
            "stride_x": 1,
            "dilation_y": 1,
            "dilation_x": 1,
            "top": 0,
            "left": 0,
            "row_width": rows,
            "features": result[-1],
            "groups": 1,
        }
    a = node.attributes
    kernel = constants[node.inputs[1]].shape

    def pair(values, missing):
        return (missing, *values)[-2:]

    padding = pair(a["padding"], (0, 0))
    height, width = pair(x[1:-1], 1)
    return {
        "height": height,
        "width": width,
        "channels": x[-1],
        "out_width": result[-2],
        **dict(zip(("kernel_height", "kernel_width"), pair(kernel[:-2], 1), strict=True)),
        **dict(zip(("stride_y", "stride_x"), pair(a["strides"], 1), strict=True)),
        **dict(zip(("dilation_y", "dilation_x"), pair(a["dilation"], 1), strict=True)),
        "top": padding[0][0],
        "left": padding[1][0],
        "row_width": width + sum(padding[1]),
        "features": result[-1],
        "groups": a["groups"],
    }
