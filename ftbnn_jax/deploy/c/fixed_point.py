"""A network whose every number is an integer: what the C program computes, in numpy and as C text.

Quantised by `fixed_plan`. `shifted(v, s) = floor((v + 2**s // 2) / 2**s)`. Where the ranges of
`ranges` prove that no image leaves int32, the text is plain int32 arithmetic; elsewhere it is
int64's, and what leaves int32 becomes its end, and is counted.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from ftbnn_jax.deploy.c import fixed_functions, intervals, mantissas, operations
from ftbnn_jax.deploy.c.arithmetic import Names
from ftbnn_jax.deploy.c.fixed_plan import Plan
from ftbnn_jax.deploy.c.geometry import Multiples
from ftbnn_jax.deploy.c.integer_layers import IntegerLayer
from ftbnn_jax.deploy.c.mantissas import shifted
from ftbnn_jax.deploy.c.options import FRACTION_BITS
from ftbnn_jax.deploy.c.schedule import COPY, Network
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir

# The largest activation seen while calibrating is given this factor of room.
_HEADROOM_BITS = 3
# As fine as float32 is around 8; more would leave sums of some values no room.
PROVEN_BITS = 20


def choose_fraction_bits(network: Network, largest: Mapping[str, float]) -> int:
    """Returns how many fraction bits leave eight times the room that values take on some images.

    Fewer, where a parameter needs that: the norm of a channel that hardly changes has a large factor.

    Args:
      network: the loops.
      largest: the largest magnitude of each value, under the names of `emulator.Trace`.

    Raises:
      UserError: fixed point has none of an operation.
    """
    low, high = FRACTION_BITS
    # Which values have the program's bits does not depend on how many these are.
    bits = _fitting(network, high)
    counted = bits[1].scaled() if bits else set()
    values = [x for name, x in largest.items() if name in counted]
    whole = math.frexp(max(values, default=1.0))[1] + _HEADROOM_BITS
    wanted = min(max(31 - whole, low), high)
    # Where nothing fits, `quantize` says what does not.
    found = _fitting(network, wanted)
    return found[0] if found else wanted


def is_proven(network: Network) -> bool:
    """Whether no image can overflow a network in fixed point of `PROVEN_BITS`.

    Raises:
      UserError: fixed point has none of an operation.
    """
    found = _proven(network, PROVEN_BITS, Names(set()))
    return found is not None and not found.unproven


def quantize(network: Network, fraction_bits: int, names: Names) -> "FixedPoint":
    """Quantises a network: so that no image can overflow, where that can be.

    Args:
      network: the loops.
      fraction_bits: `PROVEN_BITS`, or from `choose_fraction_bits`; values have as many at most.
      names: of its constants in C.

    Raises:
      UserError: a parameter is too large, or fixed point has none of an operation.
    """
    proven = _proven(network, fraction_bits, names)
    if proven is not None and not proven.unproven:
        return proven
    try:
        found = FixedPoint(network, fraction_bits, names, proving=False)
    except mantissas.DoesNotFit as error:
        fitting = _fitting(network, fraction_bits - 1)
        instead = (
            f"{fitting[0]} would do" if fitting else "no fewer would do; without --fixed_point it fits"
        )
        raise UserError(f"{error} of {fraction_bits} fraction bits; {instead}") from None
    # What needs more room than any bits leave, not what has none for that reason.
    found.too_large = proven.unproven if proven else found.unproven
    return found


def _proven(network: Network, fraction_bits: int, names: Names) -> "FixedPoint | None":
    with contextlib.suppress(mantissas.DoesNotFit):
        return FixedPoint(network, fraction_bits, names)
    return None


def _fitting(network: Network, fraction_bits: int) -> "tuple[int, FixedPoint] | None":
    """Returns how many fraction bits all parameters fit into, at most `fraction_bits`, if any do."""
    for bits in range(fraction_bits, FRACTION_BITS[0] - 1, -1):
        with contextlib.suppress(mantissas.DoesNotFit):
            return bits, FixedPoint(network, bits, Names(set()), proving=False)
    return None


class FixedPoint(Plan):
    """int32 values, in numpy int64 before what leaves int32 becomes its end."""

    value_type, sum_type = "int32_t", "int64_t"

    def definitions(self) -> dict[str, object]:
        output = self._network.graph.output
        return {"FRACTION_BITS": self.bits_of(output), "PROVEN": int(not self.unproven and not self.cut)}

    # Numbers.

    def constant(self, reader: ir.Node, name: str) -> np.ndarray:
        found = self._fixed.get((reader.name, name))
        if found is None:
            found = self._network.constants[name]
        return found.astype(np.int64) if found.dtype != bool else found

    def input(self, images: np.ndarray) -> np.ndarray:
        return images.astype(np.int64)

    def table_of(self, node: ir.Node) -> np.ndarray | None:
        if node.op != "conv" or node.name in self.layers:
            return super().table_of(node)
        return self._pixels.get(node.inputs[0])

    def narrowing(self, layer: IntegerLayer) -> int:
        return layer.bits - self._bits[layer.node.inputs[0]]

    def narrowed(self, layer: IntegerLayer, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        by = self.narrowing(layer)
        found = shifted(x, -by) if by < 0 else x * 2**by
        kept = np.clip(found, -layer.largest, layer.largest)
        return kept, kept != found

    def from_integers(self, layer: IntegerLayer, sums: np.ndarray) -> np.ndarray:
        return self.from_sums(layer.node, sums)

    def elementwise(self, node: ir.Node, operands: Sequence[np.ndarray]) -> np.ndarray:
        real = self._is_real(node.name)
        if node.op == "compare":
            x, y = (self._aligned(node, n, v) for n, v in zip(node.inputs, operands, strict=True))
            return operations.elementwise(node, [x, y], np.bool_)
        if not real:
            if node.op == "cast" and self._is_real(node.inputs[0]):
                operands = [fixed_functions.whole(operands[0], self._bits[node.inputs[0]])]
            return operations.elementwise(node, operands, self._network.shapes[node.name].dtype)
        if node.name in self._means or node.name in self._ratios:
            return ratio(operands[0] * 2 ** self._shifts.get(node.name, 0), operands[1])
        if node.op in fixed_functions.FUNCTIONS:
            bits = self._bits[node.inputs[0]], self._bits[node.name]
            return fixed_functions.apply(node.op, operands[0], *bits)
        if node.op == "integer_pow":
            return shifted(operands[0] * operands[0], self._shifts[node.name])
        if node.op in ("mul", "div"):
            return shifted(operands[0] * operands[1], self._shifts[node.name])
        if node.op == "select":
            which, x, y = operands
            x, y = (self._aligned(node, n, v) for n, v in zip(node.inputs[1:], (x, y), strict=True))
            return np.where(which, y, x)
        if node.op == "cast":
            return operands[0].astype(np.int64)
        operands = [self._aligned(node, n, v) for n, v in zip(node.inputs, operands, strict=True)]
        return operations.elementwise(node, operands, np.int64)

    def _target(self, node: ir.Node) -> int:
        """Returns how many bits a node's operands are brought to."""
        if node.op == "compare":
            found = [self._bits[n] for n in node.inputs if n in self._bits]
            # No more of them than int64 has room for.
            return min(max(found), min(found) + 30)
        return self._bits.get(node.name, 0)

    def _aligned(self, node: ir.Node, name: str, x: np.ndarray) -> np.ndarray:
        by = self._target(node) - self._bits[name] if name in self._bits else 0
        if node.op == "sign" or self._network.constant_of(name):
            return x
        return x * 2**by if by > 0 else shifted(x, -by)

    def join(self, node: ir.Node, operands: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self._aligned(node, n, v) for n, v in zip(node.inputs, operands, strict=True)]

    def integers(self, node: ir.Node, sums: np.ndarray) -> np.ndarray:
        del node
        return sums.astype(np.int64)

    def signs(self, x: np.ndarray) -> np.ndarray:
        # A float32 has too few bits for an int32, but not for its sign.
        return np.sign(x).astype(np.float32)

    def kernel(self, node: ir.Node) -> np.ndarray:
        return self._kernels[node.name].astype(np.int64)

    def from_sums(self, node: ir.Node, sums: np.ndarray) -> np.ndarray:
        found = shifted(sums, self._shifts.get(node.name, 0))
        if node.name in self._scales:
            scale, shift = self._scales[node.name]
            return shifted(np.clip(found, *self.limits) * scale.astype(np.int64), shift)
        return found

    def begin(self, x: np.ndarray) -> np.ndarray:
        return x.astype(np.int64)

    def is_wide(self, node: ir.Node) -> bool:
        return node.name in self._wide

    # Text.

    def table(self, reader: ir.Node, name: str) -> str:
        return self.add((reader.name, name), name, self._as_int32(self.constant(reader, name)))

    @staticmethod
    def _as_int32(x: np.ndarray) -> np.ndarray:
        return x.astype(np.int32)

    def literal(self, reader: ir.Node, name: str) -> str:
        value = int(self.constant(reader, name).reshape(-1)[0])
        return str(value) if value > -(2**31) else f"(-{2**31 - 1} - 1)"

    def loaded(self, kernel: ir.Node, text: str) -> tuple[str, str]:
        if not self._is_real(kernel.name):
            return super().loaded(kernel, text)
        if kernel.name in self._wide:
            return self.row_type(kernel), text
        if kernel.name in self._scales:
            scale, shift = self._scales[kernel.name]
            name = self.add((kernel.name, "scale"), f"{kernel.name}/scale", scale)
            product = f"ftbnn_shifted((int64_t){text} * {name}[c], {shift})"
            return "int32_t", self._kept(kernel, product)
        if self.row_type(kernel) == "int64_t":
            shift = self._shifts.get(kernel.name, 0)
            return "int32_t", self._kept(kernel, f"ftbnn_shifted({text}, {shift})" if shift else text)
        return "int32_t", text

    def row_type(self, kernel: ir.Node) -> str:
        """Returns the type of a kernel's sums: int32_t where no image makes one leave it."""
        if kernel.op == "dot" and kernel.name not in self._network.kernels:
            return "int64_t"
        partial = self.ranges.partial.get(kernel.name)
        narrow = kernel.op not in operations.SUMS or (
            partial is not None and partial.is_within(*self.limits)
        )
        return "int32_t" if narrow else "int64_t"

    def value(self, node: ir.Node, operands: Sequence[str]) -> tuple[str, str]:
        if node.op == "compare" and self._is_real(node.inputs[0]):
            x, y = self._texts(node, node.inputs, operands)
            return "int", f"{x} {operations.COMPARE[node.attributes['direction']]} {y}"
        if not self._is_real(node.name):
            if node.op == "cast" and self._is_real(node.inputs[0]):
                operands = [f"ftbnn_whole({operands[0]}, {self._bits[node.inputs[0]]})"]
            return super().value(node, operands)
        return "int32_t", self._expression(node, operands)

    def _kept(self, node: ir.Node, wide: str) -> str:
        """Returns the text of an int64_t as int32_t."""
        return f"(int32_t)({wide})" if self.fits(node) else _saturated(wide)

    def _is_narrow(self, x: intervals.Interval, shift: int = 0) -> bool:
        """Whether numbers fit into int32, and with what is added to them before they are shifted."""
        low, high = self.limits
        return x.is_within(low, high - (1 << shift >> 1))

    def _texts(self, node: ir.Node, names: Sequence[str], texts: Sequence[str]) -> list[str]:
        """Returns operands with the same fraction bits: all int32_t if each fits, or all int64_t."""
        pairs = list(zip(names, texts, strict=True))
        narrow = self.fits(node) and all(self._fits_aligned(node, name) for name in names)
        return [self._text(node, name, text, narrow) for name, text in pairs]

    def _by(self, node: ir.Node, name: str) -> int:
        """Returns how many fraction bits an operand is given; below 0: that are taken from it."""
        if node.op == "sign" or self._network.constant_of(name) or name not in self._bits:
            return 0
        return self._target(node) - self._bits[name]

    def _fits_aligned(self, node: ir.Node, name: str) -> bool:
        by, x = self._by(node, name), self.ranges.operand(node, name)
        return self._is_narrow(x.each(lambda e: e * 2**by)) if by > 0 else self._is_narrow(x, -by)

    def _text(self, node: ir.Node, name: str, text: str, narrow: bool) -> str:
        by, suffix = self._by(node, name), "_32" if narrow else ""
        wide = text if narrow else f"(int64_t){text}"
        return (
            wide
            if not by
            else f"{wide} * {2**by}"
            if by > 0
            else f"ftbnn_shifted{suffix}({text}, {-by})"
        )

    def _expression(self, node: ir.Node, operands: Sequence[str]) -> str:
        if node.op == COPY:
            return operands[0]
        if node.name in self._means:
            return self._mean(node, *operands)
        if node.name in self._ratios:
            x = f"(int64_t){operands[0]} * {2 ** self._shifts[node.name]}"
            return _saturated(f"ftbnn_ratio({x}, {operands[1]})")
        if node.op in fixed_functions.FUNCTIONS:
            bits = self._bits[node.inputs[0]], self._bits[node.name]
            return self._kept(node, f"ftbnn_{node.op}({operands[0]}, {bits[0]}, {bits[1]})")
        if node.op in ("mul", "div", "integer_pow"):
            return self._product(node, operands[0], operands[-1])
        if node.op == "cast":
            return f"(int32_t){operands[0]}"
        if node.op == "sign":
            return f"({operands[0]} > 0) - ({operands[0]} < 0)"
        names = node.inputs[1:] if node.op == "select" else node.inputs
        x, *others = texts = self._texts(node, names, operands[-len(names) :])
        if node.op == "select":
            found = f"{operands[0]} ? {others[0]} : {x}"
        elif node.op in ("max", "min"):
            found = f"{x} {'>' if node.op == 'max' else '<'} {others[0]} ? {x} : {others[0]}"
        elif node.op in ("neg", "abs"):
            found = f"-{x}" if node.op == "neg" else f"{x} < 0 ? -{x} : {x}"
        else:
            found = f"{texts[0]} {'+' if node.op == 'add' else '-'} {texts[1]}"
        return self._kept(node, found)

    def _product(self, node: ir.Node, x: str, y: str) -> str:
        shift = self._shifts[node.name]
        corners = [self.ranges.operand(node, name) for name in node.inputs]
        found = intervals.product(corners[0], corners[-1])
        if self._is_narrow(found, shift):
            product = f"({x} * {y})"
            return f"ftbnn_shifted_32{product[:-1]}, {shift})" if shift else product
        return self._kept(node, f"ftbnn_shifted((int64_t){x} * {y}, {shift})")

    def _mean(self, node: ir.Node, x: str, count: str) -> str:
        shift, sums = self._shifts.get(node.name, 0), self.ranges.of(node.inputs[0])
        if not shift and count.isdecimal() and int(count).bit_count() == 1:
            by = int(count).bit_length() - 1
            narrow = self.row_type(self._network.nodes[node.inputs[0]]) == "int32_t"
            if narrow and self._is_narrow(sums, by):
                return f"ftbnn_shifted_32({x}, {by})"
            return self._kept(node, f"ftbnn_shifted({x}, {by})")
        return self._kept(node, f"ftbnn_mean((int64_t){x} * {2**shift}, {count})")

    def multiplied(self, x: str, y: str) -> str:
        return f"(int64_t){x} * {y}"

    def joined(self, node: ir.Node, name: str, text: str) -> str:
        if not self._is_real(node.name) or node.op != "concatenate" or not self._by(node, name):
            return text
        return self._kept(node, self._text(node, name, text, narrow=False))

    def fields(self, kernel: ir.Node) -> dict[str, str]:
        weights = self._kernels[kernel.name]
        multiples = self._network.kernels.get(kernel.name)
        wanted = multiples.name if isinstance(multiples, Multiples) else kernel.inputs[1]
        found = self.add((kernel.name, "weights"), wanted, np.ascontiguousarray(weights))
        name = "multiples" if kernel.name in self._scales else "weights"
        return {name: found, "shift": str(self._shifts[kernel.name])}

    def pixels(self, kernel: ir.Node) -> str:
        name = kernel.inputs[0]
        return self.add((name, "pixels"), f"{name}/pixels", self._pixels[name])


def ratio(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns `x / y`, rounded to the nearest, halves up; int32's ends where `y` is 0."""
    x, y = np.where(y < 0, -x, x), np.abs(y)
    ends = np.where(x > 0, Plan.limits[1], np.where(x < 0, Plan.limits[0], 0))
    return np.where(y == 0, ends, (2 * x + y) // np.where(y == 0, 1, 2 * y))


def _saturated(text: str) -> str:
    return f"ftbnn_saturate({text}, &m->scratch->saturated)"
