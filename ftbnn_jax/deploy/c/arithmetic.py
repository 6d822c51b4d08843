"""Single precision: what the C program computes with each operation, in numpy and as C text.

Both stand side by side, so that what one does with a number the other one does, with the same roundings.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ftbnn_jax.deploy.c import operations, tables
from ftbnn_jax.deploy.c.geometry import Multiples
from ftbnn_jax.deploy.c.integer_layers import IntegerLayer
from ftbnn_jax.deploy.c.schedule import COPY, Network
from ftbnn_jax.graph import ir

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "and": "&", "or": "|"}
_INTEGERS = {"int8": "int8_t", "int16": "int16_t", "uint8": "uint8_t", "uint16": "uint16_t"}
_SUMS = ("window_sum", "reduce_sum", "conv", "dot")


class Names:
    """Names in C of a network's constants, each once.

    Args:
      taken: words that the program has already.
    """

    def __init__(self, taken: set[str]):
        self._taken = set(taken)
        self._names: dict[Any, str] = {}

    def of(self, key: Any, wanted: str) -> str:
        """Returns the name of what `key` stands for; `wanted`: a name in the graph that it resembles."""
        if key not in self._names:
            self._names[key] = tables.name_of(wanted, self._taken)
            self._taken.add(self._names[key])
        return self._names[key]


class SinglePrecision:
    """float32, every operation rounded by itself.

    Attributes:
      limits: the smallest and the largest value.
      tables: the constants that the text reads, by name in C.
      layers: those in integers, by the name of their node.
    """

    limits = (-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max))
    value_type = sum_type = "float"

    def __init__(self, network: Network, names: Names):
        self._network = network
        self._names = names
        self.layers = network.layers
        self.tables: dict[str, tables.Table] = {}

    def definitions(self) -> dict[str, object]:
        """Returns macros of the header, without their prefix."""
        return {}

    # Numbers.

    def constant(self, reader: ir.Node, name: str) -> np.ndarray:
        """Returns a constant as the program has it."""
        del reader
        return self._network.constants[name]

    def input(self, images: np.ndarray) -> np.ndarray:
        """Returns images as the program has them."""
        return images.astype(np.float32) if images.dtype.name in operations.REAL else images

    def elementwise(self, node: ir.Node, operands: Sequence[np.ndarray]) -> np.ndarray:
        """Computes an elementwise operation."""
        return operations.elementwise(node, operands, self._network.shapes[node.name].dtype)

    def integers(self, node: ir.Node, sums: np.ndarray) -> np.ndarray:
        """Returns what follows of the integers of a binary product."""
        return operations.rounded(sums.astype(np.float32), self._network.shapes[node.name].dtype)

    def signs(self, x: np.ndarray) -> np.ndarray:
        """Returns signs as real numbers."""
        return x.astype(np.float32)

    def kernel(self, node: ir.Node) -> np.ndarray:
        """Returns the kernel of a real convolution, `[KH, KW, I / groups, O]`, or matrix, `[I, O]`."""
        found = self._network.kernels.get(node.name)
        if isinstance(found, Multiples):
            return found.values.astype(np.float32) * found.scale
        return self._network.constants[node.inputs[1]] if found is None else found

    def from_sums(self, node: ir.Node, sums: np.ndarray) -> np.ndarray:
        """Returns the values of sums of products, or of values."""
        return operations.rounded(sums, self._network.shapes[node.name].dtype)

    def begin(self, x: np.ndarray) -> np.ndarray:
        """Returns values as what sums of them are made of."""
        return x

    def join(self, node: ir.Node, operands: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns what a concatenation puts side by side."""
        del node
        return list(operands)

    def is_wide(self, node: ir.Node) -> bool:
        """Whether a sum may leave its range, since its mean follows."""
        del node
        return False

    def table_of(self, node: ir.Node) -> np.ndarray | None:
        """Returns the table `[channels, 256]` that a convolution reads pixels by; None for none."""
        layer = self.layers.get(node.name)
        return None if layer is None else layer.table

    def narrowed(self, layer: IntegerLayer, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the integers that a layer makes of values, and which of these leave their range."""
        scaled, most = x * np.float32(2.0**layer.bits), np.float32(layer.largest)
        below = np.where(scaled < most, scaled, most)
        kept = np.where(below > -most, below, -most)
        return np.rint(kept).astype(np.int64), kept != scaled

    def from_integers(self, layer: IntegerLayer, sums: np.ndarray) -> np.ndarray:
        """Returns the values of a layer's sums."""
        found = sums.astype(np.float32) * layer.scale
        return operations.rounded(found, self._network.shapes[layer.node.name].dtype)

    # Text.

    def joined(self, node: ir.Node, name: str, text: str) -> str:
        """Returns the text of an element that a concatenation reads."""
        del node, name
        return text

    def literal(self, reader: ir.Node, name: str) -> str:
        value = self.constant(reader, name).reshape(-1)[0]
        tables.check_finite(name, np.asarray(value))
        return tables.literal(value)

    def table(self, reader: ir.Node, name: str) -> str:
        return self.add(name, name, self.constant(reader, name))

    def add(self, key: Any, wanted: str, values: np.ndarray) -> str:
        found = self._names.of(key, wanted)
        if found not in self.tables:
            tables.check_finite(wanted, values)
            self.tables[found] = tables.Table(
                found, values if tables.holds(values.dtype) else values.astype(np.int32)
            )
        return found

    def narrowing(self, layer: IntegerLayer) -> int:
        return layer.bits

    def loaded(self, kernel: ir.Node, text: str) -> tuple[str, str]:
        dtype = self._network.shapes[kernel.name].dtype.name
        if kernel.name in self.layers:
            scale = self.add(
                (kernel.name, "scale"), f"{kernel.inputs[1]}/scale", self.layers[kernel.name].scale
            )
            return "float", _rounded(dtype, f"(float)((float){text} * {scale}[c])")
        if dtype not in operations.REAL:
            return "int32_t", text
        if kernel.op in ir.BINARY:
            return "float", _rounded(dtype, f"(float){text}")
        return "float", _rounded(dtype, text) if kernel.op in _SUMS else text

    def multiplied(self, x: str, y: str) -> str:
        # Some processors compute in double: the product is rounded from there.
        return f"({self.value_type})({x} * {y})"

    def row_type(self, kernel: ir.Node) -> str:
        del kernel
        return self.value_type

    def value(self, node: ir.Node, operands: Sequence[str]) -> tuple[str, str]:
        dtype = self._network.shapes[node.name].dtype.name
        x = operands[0]
        kind = "float" if dtype in operations.REAL else "int32_t"
        if node.op == COPY:
            return kind, x
        if node.op == "compare":
            return "int", f"{x} {operations.COMPARE[node.attributes['direction']]} {operands[1]}"
        if node.op == "select":
            return kind, f"{x} ? {operands[2]} : {operands[1]}"
        if node.op in ("max", "min"):
            sign = ">" if node.op == "max" else "<"
            return kind, f"{x} {sign} {operands[1]} ? {x} : {operands[1]}"
        of_kind = self._real if dtype in operations.REAL else self._whole
        return kind, of_kind(node, dtype, operands)

    def _real(self, node: ir.Node, dtype: str, operands: Sequence[str]) -> str:
        x, *others = operands
        if node.op == "integer_pow":
            return self._power(x, node.attributes["y"], dtype)
        texts = {
            "neg": f"-{x}",
            "abs": f"ftbnn_abs({x})",
            "sign": f"(float)(({x} > 0) - ({x} < 0))",
            "cast": f"(float){x}",
        }
        if node.op in _INFIX:
            text = f"{x} {_INFIX[node.op]} {others[0]}"
        else:
            text = texts.get(node.op, f"ftbnn_{node.op}({x})")
        return _rounded(dtype, text)

    def _power(self, x: str, power: int, dtype: str) -> str:
        if not power:
            return "1.0f"
        known, text = {"x": x}, x
        for name, first, second in operations.multiplications(power):
            text = (
                known[first]
                if not second
                else f"{_rounded(dtype, f'(float)({known[first]} * {known[second]})')}"
            )
            known[name] = text
        return text if power > 0 else _rounded(dtype, f"1.0f / ({text})")

    def _whole(self, node: ir.Node, dtype: str, operands: Sequence[str]) -> str:
        x, *others = operands
        if node.op == "cast" and dtype == "bool":
            return f"{x} != 0"
        if node.op == "not":
            return f"!{x}" if dtype == "bool" else f"~{x}"
        if node.op in ("and", "or"):
            return f"{x} {_INFIX[node.op]} {others[0]}"
        texts = {
            "neg": f"(int32_t)(0u - (uint32_t){x})",
            "abs": f"{x} < 0 ? (int32_t)(0u - (uint32_t){x}) : {x}",
            "sign": f"({x} > 0) - ({x} < 0)",
            "cast": f"(int32_t){x}",
        }
        if node.op in texts:
            text = texts[node.op]
        else:
            text = f"(int32_t)((uint32_t){x} {_INFIX[node.op]} (uint32_t){others[0]})"
        return f"({_INTEGERS[dtype]})({text})" if dtype in _INTEGERS else text

    def fields(self, kernel: ir.Node) -> dict[str, str]:
        found = self._network.kernels.get(kernel.name)
        if isinstance(found, Multiples):
            return {
                "multiples": self.add(found.name, found.name, found.values),
                "scale": self.add((found.scale_name, "row"), found.scale_name, found.scale),
            }
        key = kernel.inputs[1]
        if found is None:
            return {"weights": self.table(kernel, key)}
        return {"weights": self.add((key, "matrix"), key, np.ascontiguousarray(found))}

    def pixels(self, kernel: ir.Node) -> str:
        name = kernel.inputs[0]
        return self.add((name, "pixels"), f"{name}/pixels", pixel_table(self._network, name))


def _rounded(dtype: str, text: str) -> str:
    return text if dtype == "float32" else f"ftbnn_{dtype}({text})"


def pixel_table(network: Network, name: str) -> np.ndarray:
    """Returns what an array has for each channel and pixel value, float32 `[channels, 256]`."""
    graph = network.graph
    part = graph.between(graph.input, name)
    channels = graph.shape[-1]
    values = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, channels))
    known: dict[str, np.ndarray] = {graph.input: values, **network.constants}
    for node in part.nodes:
        if node.name in network.constants:
            continue
        operands = [
            known[n].reshape(known[n].shape[-1:] or (1,)) if n in network.constants else known[n]
            for n in node.inputs
        ]
        found = operations.elementwise(node, operands, network.shapes[node.name].dtype)
        known[node.name] = np.broadcast_to(found, (256, channels))
    return np.ascontiguousarray(known[name].T)
