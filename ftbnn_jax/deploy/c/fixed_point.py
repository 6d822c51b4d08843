"""A network whose every number is an integer: how it is quantised, and what is lost by that.

A real number x between the products is the int32 `round(x * 2**bits)`, where `bits` are the program's
fraction bits, 0 for the integers of a binary product, and as many as fit for the sums of a convolution
of pixels. Factors are integers that share one shift: `y = saturate(shifted(x * factor, shift))`, with
`shifted(v, s) = floor((v + 2**s // 2) / 2**s)`. What leaves int32 becomes its end, and is counted.
Real convolutions sum in int64, with weights as fine as that allows: a coarser stem, or shortcut, turns
signs of small activations, and with them classes. The classifier's int16 weights are the artifact's; its
scale follows.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ftbnn_jax.deploy.c import operations
from ftbnn_jax.deploy.c.arithmetic import Names, SinglePrecision, pixel_table
from ftbnn_jax.deploy.c.geometry import Multiples
from ftbnn_jax.deploy.c.options import FRACTION_BITS
from ftbnn_jax.deploy.c.schedule import COPY, Network
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir

_LARGEST = np.iinfo(np.int32).max
_LARGEST_SUM = np.iinfo(np.int64).max
_PIXEL_BITS = 24
_PARAMETER_BITS = 30
_LARGEST_SHIFT = 60
# The largest activation seen while calibrating is given this factor of room.
_HEADROOM_BITS = 3
# What a comparison may take for 0.
_TINY = np.finfo(np.float32).tiny
_SUMS = ("window_sum", "reduce_sum")
_SAME = ("neg", "abs", "window_max", "reduce_max", "take", "pad", COPY, *operations.VIEWS)
_SWAPPED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}


class _DoesNotFit(UserError):
    """A parameter is too large."""


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


def quantize(network: Network, fraction_bits: int, names: Names) -> "FixedPoint":
    """Quantises a network.

    Args:
      network: the loops.
      fraction_bits: from `choose_fraction_bits`.
      names: of its constants in C.

    Raises:
      UserError: a parameter is too large, or fixed point has none of an operation.
    """
    try:
        return FixedPoint(network, fraction_bits, names)
    except _DoesNotFit as error:
        found = _fitting(network, fraction_bits - 1)
        instead = f"{found[0]} would do" if found else "no fewer would do; without --fixed_point it fits"
        raise UserError(f"{error} of {fraction_bits} fraction bits; {instead}") from None


def _fitting(network: Network, fraction_bits: int) -> "tuple[int, FixedPoint] | None":
    """Returns how many fraction bits all parameters fit into, at most `fraction_bits`, if any do."""
    for bits in range(fraction_bits, FRACTION_BITS[0] - 1, -1):
        with contextlib.suppress(_DoesNotFit):
            return bits, FixedPoint(network, bits, Names(set()))
    return None


class FixedPoint(SinglePrecision):
    """int32 values, in numpy int64 before what leaves int32 becomes its end.

    Attributes:
      fraction_bits: of the real numbers between the products.
      zeroed: how many factors of each tensor are 0, and were not; without others.
    """

    limits = (np.iinfo(np.int32).min, np.iinfo(np.int32).max)
    value_type, sum_type = "int32_t", "int64_t"

    def __init__(self, network: Network, fraction_bits: int, names: Names):
        super().__init__(network, names)
        self.fraction_bits = fraction_bits
        self.zeroed: dict[str, int] = {}
        # By node: fraction bits, and the shift behind a multiplication or a sum.
        self._bits: dict[str, int] = {}
        self._shifts: dict[str, int] = {}
        # By reader and name: integers in the place of a constant.
        self._fixed: dict[tuple[str, str], np.ndarray] = {}
        self._kernels: dict[str, np.ndarray] = {}
        self._pixels: dict[str, np.ndarray] = {}
        # Sums whose mean follows, and divisions that are means.
        self._wide: set[str] = set()
        self._means: set[str] = set()
        self._scales: dict[str, tuple[np.ndarray, int]] = {}
        graph = network.graph
        if graph.dtype in operations.REAL:
            raise UserError(f"images: fixed point takes none of {graph.dtype}; uint8 pixels would do")
        self._bits[graph.input] = 0
        self._loops = [node for loop in network.loops for node in loop.results()]
        self._in_loops = {node.name for node in self._loops}
        for node in graph.nodes:
            if node.name in network.constants:
                continue
            if node.name in self._in_loops or node.op in operations.VIEWS:
                self._plan(node)
        if self._bits.get(graph.output) != fraction_bits:
            node = network.nodes[graph.output]
            raise self._refuse(node, "of whole numbers as a result")

    def scaled(self) -> set[str]:
        """Returns the names of the values that have the program's fraction bits."""
        return {n for n, b in self._bits.items() if b == self.fraction_bits} - self._wide

    # How many bits each value has.

    def _is_real(self, name: str) -> bool:
        return self._network.shapes[name].dtype.name in operations.REAL

    def _refuse(self, node: ir.Node, what: str) -> UserError:
        return UserError(f"{operations.where(node)}: fixed point has none {what}; single precision has")

    def _plan(self, node: ir.Node) -> None:
        if not self._is_real(node.name):
            if node.op == "compare":
                self._plan_comparison(node)
            elif node.op == "cast" and self._is_real(node.inputs[0]):
                raise self._refuse(node, f"to {node.attributes['dtype']}")
            return
        first = node.inputs[0]
        others = ("conv", "dot", "cast", "select", *operations.VIEWS, *ir.BINARY)
        if node.op not in others and first not in self._bits and not self._network.constant_of(first):
            raise self._refuse(node, "of such operands")
        real = [n for n in node.inputs if n in self._network.shapes and self._is_real(n)]
        arrays = [n for n in real if not self._network.constant_of(n)]
        if node.op in ir.BINARY:
            self._bits[node.name] = 0
        elif node.op == "conv" or (node.op == "dot" and node.name in self._network.kernels):
            self._plan_product(node)
        elif node.op == "cast":
            self._bits[node.name] = self._bits.get(node.inputs[0], 0)
        elif node.op == "sign":
            self._bits[node.name] = 0
        elif node.op in _SUMS:
            self._bits[node.name] = self._bits[node.inputs[0]]
            readers = [n for n in self._loops if node.name in n.inputs]
            if [n.op for n in readers] == ["div"] and self._counts(readers[0]) is not None:
                self._wide.add(node.name)
        elif node.op in operations.VIEWS and node.inputs[0] not in self._bits:
            return
        elif node.op in _SAME:
            self._bits[node.name] = self._bits.get(node.inputs[0], self.fraction_bits)
            if node.op == "pad":
                self._constants_at(node, node.inputs[1:], self._bits[node.name])
        elif node.op == "mul":
            self._plan_multiplication(node)
        elif node.op == "div":
            self._plan_division(node)
        elif node.op == "select" and not arrays and self._multiplies(node):
            return
        elif node.op in ("add", "sub", "max", "min", "select", "concatenate"):
            self._plan_joined(node, arrays)
        else:
            raise self._refuse(node, f"of {node.op}")

    def _readers(self, name: str) -> list[ir.Node]:
        found = []
        for node in self._network.graph.nodes:
            if name in node.inputs:
                found += self._readers(node.name) if node.op in operations.VIEWS else [node]
        return found

    def _multiplies(self, node: ir.Node) -> bool:
        """Whether a choice between constants is a factor, and nothing else."""
        return all(reader.op == "mul" for reader in self._readers(node.name))

    def _counts(self, node: ir.Node) -> np.ndarray | None:
        """Returns the whole numbers that a sum is divided by; None where they are none."""
        name = self._network.constant_of(node.inputs[1])
        values = self._network.constants[name] if name else np.zeros(1)
        whole = bool((values >= 1).all() and (values == np.rint(values)).all())
        return values.astype(np.int32) if whole and values.max() < 2**31 else None

    def _plan_joined(self, node: ir.Node, arrays: Sequence[str]) -> None:
        """Operands with as many bits each: those that all have, or the program's."""
        bits = {self._bits[name] for name in arrays}
        names = [n for n in node.inputs if self._is_real(n) and self._network.constant_of(n)]
        whole = all(self._is_whole(self._network.constant_of(n)) for n in names)
        one = bits.pop() if len(bits) == 1 else 0 if not bits else self.fraction_bits
        self._bits[node.name] = one if one or whole else self.fraction_bits
        self._constants_at(node, names, self._bits[node.name])

    def _is_whole(self, name: str) -> bool:
        values = self._network.constants[name]
        return bool((values == np.rint(values)).all() and np.abs(values).max() < 2**16)

    def _constants_at(self, node: ir.Node, names: Sequence[str], bits: int) -> None:
        for name in names:
            root = self._network.constant_of(name)
            if root:
                self._fixed[node.name, root] = _fixed(root, self._network.constants[root], bits)

    def _plan_comparison(self, node: ir.Node) -> None:
        x, y = node.inputs
        constants = [self._network.constant_of(n) for n in node.inputs]
        if not self._is_real(x):
            return
        if all(constants) or (constants[0] and y not in self._bits):
            raise self._refuse(node, "of constants")
        for i, root in enumerate(constants):
            if root:
                direction = node.attributes["direction"]
                direction = direction if i else _SWAPPED[direction]
                other = node.inputs[1 - i]
                values = self._network.constants[root].astype(np.float64) * 2.0 ** self._bits[other]
                nearest = {"ge": np.ceil, "lt": np.ceil, "le": np.floor, "gt": np.floor}
                found = np.clip(nearest.get(direction, np.rint)(values), *self.limits)
                self._fixed[node.name, root] = found.astype(np.int32)

    def _plan_multiplication(self, node: ir.Node) -> None:
        factors = [n for n in node.inputs if n not in self._bits]
        if len(factors) != 1:
            raise self._refuse(node, "of two arrays")
        (factor,) = factors
        (x,) = (n for n in node.inputs if n != factor)
        choice = self._network.nodes.get(self._network.view(factor).root)
        if not self._network.constant_of(factor) and (choice is None or choice.op != "select"):
            raise self._refuse(node, "of such operands")
        if self._network.constant_of(factor):
            leaves = {(node.name, self._network.constant_of(factor)): self._network.constant_of(factor)}
        else:
            leaves = {
                (choice.name, self._network.constant_of(n)): self._network.constant_of(n)
                for n in choice.inputs[1:]
            }
        values = {key: self._network.constants[root] for key, root in leaves.items()}
        self._set_factors(node, x, values, leaves)

    def _set_factors(self, node, x, values, leaves) -> None:
        largest = max(leaves, key=lambda key: np.abs(values[key]).max())
        exponent = self.fraction_bits - self._bits[x]
        together = np.concatenate([v.reshape(-1) for v in values.values()])
        found, self._shifts[node.name] = _mantissas(leaves[largest], together, _PARAMETER_BITS, exponent)
        self._bits[node.name] = self.fraction_bits
        start = 0
        for key, array in values.items():
            part = found[start : start + array.size].reshape(array.shape)
            start += array.size
            self._fixed[key] = part
            self._note_zeroed(leaves[key], part, array)

    def _note_zeroed(self, name: str, found: np.ndarray, source: np.ndarray) -> None:
        lost = int(np.sum((found == 0) & (np.abs(source) >= _TINY)))
        if lost:
            self.zeroed[name] = lost

    def _plan_division(self, node: ir.Node) -> None:
        root = self._network.constant_of(node.inputs[1])
        if not root or self._network.constant_of(node.inputs[0]):
            raise self._refuse(node, "by an array")
        if node.inputs[0] in self._wide:
            self._bits[node.name] = self._bits[node.inputs[0]]
            self._fixed[node.name, root] = self._counts(node)
            self._means.add(node.name)
            # The mean of integers has a fraction.
            if not self._bits[node.name]:
                self._shifts[node.name] = self.fraction_bits
                self._bits[node.name] = self.fraction_bits
            return
        with np.errstate(all="ignore"):
            values = {(node.name, root): 1.0 / self._network.constants[root].astype(np.float64)}
        self._set_factors(node, node.inputs[0], values, {(node.name, root): root})

    def _plan_product(self, node: ir.Node) -> None:
        found = self._network.kernels.get(node.name)
        x = node.inputs[0]
        if isinstance(found, Multiples):
            largest = float(found.scale.max())
            # After this shift the largest class's sums are its logits, or up to twice that.
            shift = min(max(0, -math.frexp(largest)[1]), _LARGEST_SHIFT)
            self._shifts[node.name] = shift
            exponent = self.fraction_bits - self._bits[x] + shift
            name = found.scale_name
            self._scales[node.name] = _mantissas(name, found.scale, _PARAMETER_BITS, exponent)
            self._note_zeroed(name, self._scales[node.name][0], found.scale)
            self._kernels[node.name] = found.values
            self._bits[node.name] = self.fraction_bits
            return
        kernel = np.asarray(self._network.constants[node.inputs[1]] if found is None else found)
        if x in self._network.tables and node.op == "conv":
            table = pixel_table(self._network, x)
            self._pixels[x], bits = _mantissas(f"{x}/pixels", table, _PIXEL_BITS)
            largest = int(np.abs(self._pixels[x]).max())
            # What is left of a sum is as much as can fit into int32.
            kernel, weight_bits = _weights(node.inputs[1], kernel, max(largest, 1))
            shift = max(0, (_heaviest(kernel) * largest).bit_length() - 31)
        else:
            if x not in self._bits:
                raise self._refuse(node, "of such operands")
            kernel, weight_bits = _weights(node.inputs[1], kernel, 2**31)
            bits = self._bits[x]
            shift = max(0, bits + weight_bits - (bits or self.fraction_bits))
        self._kernels[node.name] = kernel
        self._shifts[node.name] = shift
        self._bits[node.name] = bits + weight_bits - shift

    # Numbers.

    def constant(self, reader: ir.Node, name: str) -> np.ndarray:
        found = self._fixed.get((reader.name, name))
        if found is None:
            found = self._network.constants[name]
        return found.astype(np.int64) if found.dtype != bool else found

    def input(self, images: np.ndarray) -> np.ndarray:
        return images.astype(np.int64)

    def table_of(self, node: ir.Node) -> np.ndarray | None:
        return self._pixels.get(node.inputs[0]) if node.op == "conv" else None

    def elementwise(self, node: ir.Node, operands: Sequence[np.ndarray]) -> np.ndarray:
        real = self._is_real(node.name)
        if node.op == "compare":
            x, y = (self._aligned(node, n, v) for n, v in zip(node.inputs, operands, strict=True))
            return operations.elementwise(node, [x, y], np.bool_)
        if not real:
            return operations.elementwise(node, operands, self._network.shapes[node.name].dtype)
        if node.name in self._means:
            x, count = operands
            x = x * 2 ** self._shifts.get(node.name, 0)
            return (2 * x + count) // (2 * count)
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
            found = {self._bits[n] for n in node.inputs if n in self._bits}
            return found.pop() if len(found) == 1 else self.fraction_bits
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
        return self._add((reader.name, name), name, self._as_int32(self.constant(reader, name)))

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
            return "int64_t", text
        if kernel.name in self._scales:
            scale, shift = self._scales[kernel.name]
            wanted = self._network.kernels[kernel.name].scale_name
            name = self._add((kernel.name, "scale"), wanted, scale)
            return "int32_t", _saturated(f"ftbnn_shifted((int64_t){text} * {name}[c], {shift})")
        return "int32_t", _saturated(text) if kernel.op in _SUMS else text

    def value(self, node: ir.Node, operands: Sequence[str]) -> tuple[str, str]:
        if node.op == "compare" and self._is_real(node.inputs[0]):
            x, y = (self._text(node, n, v) for n, v in zip(node.inputs, operands, strict=True))
            return "int", f"{x} {operations.COMPARE[node.attributes['direction']]} {y}"
        if not self._is_real(node.name):
            return super().value(node, operands)
        return "int32_t", self._expression(node, operands)

    def _text(self, node: ir.Node, name: str, text: str) -> str:
        by = self._target(node) - self._bits[name] if name in self._bits else 0
        if not by or node.op == "sign" or self._network.constant_of(name):
            return f"(int64_t){text}"
        return f"(int64_t){text} * {2**by}" if by > 0 else f"ftbnn_shifted({text}, {-by})"

    def _expression(self, node: ir.Node, operands: Sequence[str]) -> str:
        if node.op == COPY:
            return operands[0]
        if node.name in self._means:
            x = operands[0]
            if node.name in self._shifts:
                x = f"{x} * {2 ** self._shifts[node.name]}"
            return _saturated(f"ftbnn_mean({x}, {operands[1]})")
        if node.op in ("mul", "div"):
            product = f"(int64_t){operands[0]} * {operands[1]}"
            return _saturated(f"ftbnn_shifted({product}, {self._shifts[node.name]})")
        if node.op == "cast":
            return f"(int32_t){operands[0]}"
        if node.op == "sign":
            return f"({operands[0]} > 0) - ({operands[0]} < 0)"
        if node.op == "select":
            x, y = (self._text(node, n, v) for n, v in zip(node.inputs[1:], operands[1:], strict=True))
            return _saturated(f"{operands[0]} ? {y} : {x}")
        texts = [self._text(node, n, v) for n, v in zip(node.inputs, operands, strict=True)]
        if node.op in ("max", "min"):
            x, y = texts
            return _saturated(f"{x} {'>' if node.op == 'max' else '<'} {y} ? {x} : {y}")
        if node.op in ("neg", "abs"):
            x = texts[0]
            return _saturated(f"-{x}" if node.op == "neg" else f"{x} < 0 ? -{x} : {x}")
        sign = "+" if node.op == "add" else "-"
        return _saturated(f"{texts[0]} {sign} {texts[1]}")

    def joined(self, node: ir.Node, name: str, text: str) -> str:
        if not self._is_real(node.name) or node.op != "concatenate":
            return text
        return _saturated(self._text(node, name, text))

    def fields(self, kernel: ir.Node) -> dict[str, str]:
        weights = self._kernels[kernel.name]
        multiples = self._network.kernels.get(kernel.name)
        wanted = multiples.name if isinstance(multiples, Multiples) else kernel.inputs[1]
        found = self._add((kernel.name, "weights"), wanted, np.ascontiguousarray(weights))
        name = "multiples" if kernel.name in self._scales else "weights"
        return {name: found, "shift": str(self._shifts[kernel.name])}

    def pixels(self, kernel: ir.Node) -> str:
        name = kernel.inputs[0]
        return self._add((name, "pixels"), f"{name}/pixels", self._pixels[name])


def _saturated(text: str) -> str:
    return f"ftbnn_saturate({text}, &m->scratch->saturated)"


def shifted(x: np.ndarray, shift: int) -> np.ndarray:
    """Returns `x / 2**shift`, rounded to the nearest, halves up."""
    return (x + (1 << shift >> 1)) >> shift


def _mantissas(name: str, values: np.ndarray, bits: int, exponent: int = 0) -> tuple[np.ndarray, int]:
    """Quantises `scaled = values * 2**exponent`.

    Returns:
      int32 `round(scaled * 2**shift)`, at most `2**bits - 1`, and the largest such shift.
    """
    scaled = values.astype(np.float64) * 2.0**exponent
    largest = float(np.abs(scaled).max())
    if not math.isfinite(largest):
        raise UserError(f"tensor {name!r}: holds a number that is not finite; C takes finite ones only")
    shift = min(_LARGEST_SHIFT, bits - math.frexp(largest)[1]) if largest else 0
    if shift >= 0 and np.abs(np.rint(scaled * 2.0**shift)).max() >= 2**bits:
        shift -= 1
    if shift < 0:
        raise _does_not_fit(name, values)
    return np.rint(scaled * 2.0**shift).astype(np.int32), shift


def _fixed(name: str, values: np.ndarray, fraction_bits: int) -> np.ndarray:
    scaled = np.rint(values.astype(np.float64) * 2.0**fraction_bits)
    if np.isnan(scaled).any():
        raise UserError(f"tensor {name!r}: holds a number that is not finite; C takes finite ones only")
    if np.abs(scaled).max() > _LARGEST:
        raise _does_not_fit(name, values)
    return scaled.astype(np.int32)


def _does_not_fit(name: str, values: np.ndarray) -> _DoesNotFit:
    return _DoesNotFit(f"tensor {name!r}: {np.abs(values).max():.3g} does not fit into fixed point")


def _heaviest(kernel: np.ndarray) -> Any:
    """Returns the largest sum of one output's absolute weights, a Python number."""
    wide = np.abs(kernel.astype(np.result_type(kernel, np.int64)))
    return wide.sum(axis=tuple(range(kernel.ndim - 1))).max().item()


def _weights(name: str, kernel: np.ndarray, largest: int) -> tuple[np.ndarray, int]:
    """Quantises a kernel whose inputs are at most `largest`, so that no sum can leave int64.

    Returns:
      The weights, int32, and their fraction bits.
    """
    kernel = kernel.astype(np.float64)
    # One unit for the rounding of each weight.
    room = _LARGEST_SUM // largest - kernel[..., 0].size
    share = np.abs(kernel).max() / max(_heaviest(kernel), 1e-30)
    bits = min(_PARAMETER_BITS, math.floor(math.log2(max(room * share, 1))))
    return _mantissas(name, kernel, bits)
