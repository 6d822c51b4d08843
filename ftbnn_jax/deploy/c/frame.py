"""What the texts of a loop's kernel and of its elementwise operations share: sizes and places."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ftbnn_jax.deploy.c import schedule, tables
from ftbnn_jax.deploy.c.integer_layers import IntegerLayer
from ftbnn_jax.deploy.c.schedule import Loop, Network
from ftbnn_jax.graph import ir


class Arithmetic(Protocol):
    """How numbers are computed in C.

    Attributes:
      tables: the constants that the text reads, by name in C.
      value_type: of what flows between the loops.
      layers: those in integers, by the name of their node.
    """

    tables: dict[str, tables.Table]
    value_type: str
    layers: Mapping[str, IntegerLayer]

    def literal(self, reader: ir.Node, name: str) -> str:
        """Returns the text of a constant that is one number."""

    def table(self, reader: ir.Node, name: str) -> str:
        """Returns the name in C of a constant array."""

    def add(self, key: Any, wanted: str, values: np.ndarray) -> str:
        """Adds an array to the tables once, and returns its name in C, which resembles `wanted`."""

    def narrowing(self, layer: IntegerLayer) -> int:
        """Returns the field `bits` of a layer that reads values."""

    def loaded(self, kernel: ir.Node, text: str) -> tuple[str, str]:
        """Returns type and text of an element of a kernel's row."""

    def value(self, node: ir.Node, operands: Sequence[str]) -> tuple[str, str]:
        """Returns type and text of an elementwise operation."""

    def row_type(self, kernel: ir.Node) -> str:
        """Returns the type of the elements of a kernel's row."""

    def multiplied(self, x: str, y: str) -> str:
        """Returns the text of a product that is added to others."""

    def joined(self, node: ir.Node, name: str, text: str) -> str:
        """Returns the text of an element that a concatenation reads."""

    def fields(self, kernel: ir.Node) -> dict[str, str]:
        """Returns fields of a real convolution that are this arithmetic's."""

    def pixels(self, kernel: ir.Node) -> str:
        """Returns the name of the table of pixels that a convolution reads."""


class Frame:
    """The function of one loop, around what it computes.

    Args:
      network: what is written.
      arithmetic: how.
      loop: which one.
      index: of each binary product, by the name of its node.

    Attributes:
      shape: of the rows; all are one where nothing but elements in order is computed.
      flat: whether they are.
      needs_places: whether something reads the axes' indices.
    """

    def __init__(self, network: Network, arithmetic: Arithmetic, loop: Loop, index: Mapping[str, int]):
        self.network = network
        self.arithmetic = arithmetic
        self.loop = loop
        self.index = index
        self.needs_places = False
        self.flat = self._is_flat()
        self.shape = (math.prod(loop.shape),) if self.flat else loop.shape

    def _is_flat(self) -> bool:
        """Whether all rows are one: nothing but elements in order."""
        loop = self.loop
        if loop.kernel is not None or loop.packs:
            return False
        for node in loop.nodes:
            for name in node.inputs:
                if self._local(name) and node.op != schedule.COPY:
                    continue
                view = self.network.read(node, name)
                if math.prod(view.shape) != 1 and not (view.in_order and view.shape == loop.shape):
                    return False
        return True

    def _local(self, name: str) -> bool:
        return any(node.name == name for node in self.loop.results())

    @property
    def positions(self) -> int:
        """Rows."""
        return math.prod(self.shape[:-1])

    @property
    def width(self) -> int:
        """Elements of a row."""
        return self.shape[-1]

    def loop_over_rows(self, before: str, inner: str) -> str:
        """Returns the loop over all rows: what gives one, and what follows it."""
        if self.positions == 1:
            return f"  const int at = 0;\n{self.places(2)}{indent(before + inner, 2)}  (void)at;\n"
        return (
            f"  for (int at = 0; at < {self.positions}; at++) {{\n{self.places(4)}"
            f"{indent(before + inner, 4)}  }}\n"
        )

    def places(self, by: int) -> str:
        """Returns the definitions of the axes' indices, indented, if anything reads them."""
        if not self.needs_places:
            return ""
        lines, lead = [], self.shape[:-1]
        for axis, size in enumerate(lead):
            below = math.prod(lead[axis + 1 :])
            text = "at" if below == 1 else f"at / {below}"
            if axis and size > 1:
                text = f"{text} % {size}"
            lines.append(f"const int i{axis} = {text if size > 1 else 0};\n")
        used = "".join(f"(void)i{axis};\n" for axis in range(len(lead)))
        return indent("".join(lines) + used, by)

    def signs(self, i: int) -> str:
        """Returns the text of a product's `ftbnn_signs`."""
        product, at = self.network.products[i], self.network.signs[i]
        nonzero = f"m->signs + {at + product.plane}" if product.form == "ternary" else "0"
        return f"{{m->signs + {at}, {nonzero}}}"

    def signs_read(self) -> list[str]:
        """Returns the results whose signs the loop packs."""
        return list(dict.fromkeys(product.node.inputs[0] for product in self.loop.packs))

    def kind(self, node: ir.Node, root: str) -> str:
        """Returns the type of the elements of what is stored."""
        network = self.network
        if root == network.graph.input:
            return "ftbnn_pixel"
        if root in network.constants:
            return self.arithmetic.tables[self.arithmetic.table(node, root)].kind
        return "int32_t" if network.places[root].pool == "integers" else "ftbnn_value"

    def base(self, node: ir.Node, root: str) -> str:
        """Returns the text of a pointer to what is stored."""
        network = self.network
        if root == network.graph.input:
            return "m->pixels"
        if root in network.constants:
            return self.arithmetic.table(node, root)
        return self.at(network.places[root])

    def at(self, place: schedule.Place) -> str:
        """Returns the text of a pointer to a place."""
        offset = f" + {place.offset}" if place.offset else ""
        return f"m->{place.pool}{offset}"

    def pointer(self, node: ir.Node, name: str) -> str:
        """Returns the text of a pointer to what an operand is read in."""
        return self.base(node, self.network.read(node, name).root)

    def indices(self, last: str = "c") -> list[str]:
        """Returns the names of the indices of an element."""
        self.needs_places = True
        return [*(f"i{axis}" for axis in range(len(self.shape) - 1)), last]

    def source(self, kernel: ir.Node, i: int = 0) -> tuple[str, str, tuple[int, ...]]:
        """Returns type, pointer and shape of an operand, which lies in order."""
        name = kernel.inputs[i]
        root = self.network.read(kernel, name).root
        shape = tuple(self.network.shapes[name].shape)
        base = self.base(kernel, root)
        return self.kind(kernel, root), f"({base})" if " " in base else base, shape


def offset_of(indices: Sequence[str], strides: Sequence[int]) -> str:
    """Returns the text of where an element lies."""
    return " + ".join(f"{i} * {s}" for i, s in zip(indices, strides, strict=True)) or "0"


def nested(loops: Sequence[tuple[str, str, str, str]], inner: str) -> str:
    """Returns loops around text; each has a variable, a count, a definition and a check."""
    if not loops:
        return inner
    (variable, count, defined, check), *others = loops
    body = "".join(f"{line}\n" for line in (defined, check) if line) + nested(others, inner)
    return f"for (int {variable} = 0; {variable} < {count}; {variable}++) {{\n{indent(body, 2)}}}\n"


def indent(text: str, by: int) -> str:
    """Returns text with spaces before each line."""
    return "".join(f"{' ' * by}{line}\n" for line in text.splitlines())
