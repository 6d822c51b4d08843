"""How a network is quantised: which integers stand for its numbers, and with how many fraction bits.

A real number x between the products is the int32 `round(x * 2**bits)`, where `bits` are the program's
fraction bits, or fewer where a value takes more room on some image; 0 for the integers of a binary
product, and as many as fit for the sums of a convolution of pixels. Factors are integers that share one
shift, `y = shifted(x * factor, shift)`: as many bits of them as leave the product in int32, where that
is enough, otherwise 30. Real convolutions sum in int64, with weights as fine as that allows: a coarser
stem, or shortcut, turns signs of small activations, and with them classes. The classifier's int16
weights are the artifact's; its scale follows.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ftbnn_jax.deploy.c import fixed_functions, intervals, mantissas, operations, ranges
from ftbnn_jax.deploy.c.arithmetic import Names, SinglePrecision, pixel_table
from ftbnn_jax.deploy.c.geometry import Multiples
from ftbnn_jax.deploy.c.integer_layers import IntegerLayer
from ftbnn_jax.deploy.c.schedule import COPY, Network
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir

_PIXEL_BITS = 24
# Factors with fewer bits are multiplied in int64.
_LEAST_FACTOR_BITS = 16
# What a comparison may take for 0.
_TINY = np.finfo(np.float32).tiny
_SAME = ("neg", "abs", "window_max", "reduce_max", "take", "pad", COPY, *operations.VIEWS)
_SWAPPED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}


class Plan(SinglePrecision):
    """Integers for every constant, and fraction bits for every value.

    Attributes:
      fraction_bits: of the real numbers between the products.
      zeroed: how many numbers of each tensor are 0, and were not; without others.
      ranges: of every value, for every possible image.
      unproven: values that may leave int32 on some image, by name, and how large they may become.
      too_large: those among them for which no number of fraction bits leaves room.
      cut: real layers in integers that may cut off what they read, by name, and how large that may be.
    """

    limits = (np.iinfo(np.int32).min, np.iinfo(np.int32).max)

    def __init__(self, network: Network, fraction_bits: int, names: Names, proving: bool = True):
        super().__init__(network, names)
        self.fraction_bits = fraction_bits
        self._proving = proving
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
        # Divisions by arrays.
        self._ratios: set[str] = set()
        self._scales: dict[str, tuple[np.ndarray, int]] = {}
        graph = network.graph
        if graph.dtype in operations.REAL:
            raise UserError(f"images: fixed point takes none of {graph.dtype}; uint8 pixels would do")
        self._bits[graph.input] = 0
        self._loops = [node for loop in network.loops for node in loop.results()]
        self._in_loops = {node.name for node in self._loops}
        self.ranges = ranges.Ranges(network, self)
        self.unproven: dict[str, float] = {}
        self.too_large: dict[str, float] = {}
        self.cut: dict[str, float] = {}
        for node in graph.nodes:
            if node.name in network.constants:
                continue
            if node.name in self._in_loops or node.op in operations.VIEWS:
                self._plan(node)
                self._prove(node)

    def _prove(self, node: ir.Node) -> None:
        """Finds the range of a node's result, and notes where it may leave its type."""
        # Choices between factors become integers when what they multiply is known.
        waits = node.op == "select" and self._is_real(node.name) and node.name not in self._bits
        if waits or (node.op in operations.VIEWS and node.inputs[0] not in self.ranges):
            return
        self.ranges.add(node)
        found = self.ranges.exact[node.name]
        if node.name in self._ratios and self._divides_by_zero(node):
            found = intervals.Interval(np.asarray(2 * self.limits[0]), np.asarray(2 * self.limits[1]))
        elif node.name in self._scales:
            # The sums are int32 too, before they are scaled.
            sums = self.ranges.partial[node.name]
            found = found.hull(sums.each(lambda e: mantissas.shifted(e, self._shifts[node.name])))
        checked = found.low.dtype == np.int64 and node.name not in self._wide
        if checked and not found.is_within(*self.limits):
            self.unproven[node.name] = max(map(abs, found.ends())) * 2.0 ** -self._bits[node.name]

    def _divides_by_zero(self, node: ir.Node) -> bool:
        low, high = self.ranges.of(node.inputs[1])
        return bool(((low <= 0) & (high >= 0)).any())

    def fits(self, node: ir.Node) -> bool:
        """Whether no image makes a node's result leave int32."""
        return node.name not in self.unproven

    def scaled(self) -> set[str]:
        """Returns the names of the values that have the program's fraction bits."""
        return {n for n, b in self._bits.items() if b == self.fraction_bits} - self._wide

    def bits_of(self, name: str) -> int:
        """Returns how many fraction bits a value has."""
        return self._bits[name]

    # How many bits each value has.

    def _room(self, *magnitudes: Any) -> int:
        """Returns as many of the program's bits as numbers of these magnitudes leave room for."""
        most = self.fraction_bits
        size = max((float(np.max(m)) for m in magnitudes), default=0.0)
        if not self._proving or not size:
            return most
        # Roundings on the way add less than a thousandth.
        whole = math.frexp(size * (1 + 2.0**-10))[1] if math.isfinite(size) else 64
        return min(max(31 - whole, 0), most)

    def _magnitude(self, name: str) -> np.ndarray:
        """Returns the largest magnitude of an operand, a real number, for each place with its own."""
        if name in self._bits:
            low, high = self.ranges.of(name)
            return np.maximum(np.abs(low), np.abs(high)) * 2.0 ** -self._bits[name]
        if name in self._network.constants:
            return np.abs(self._network.constants[name].astype(np.float64))
        node = self._network.nodes[name]
        if node.op == "select":
            return np.maximum(*(self._magnitude(n).max() for n in node.inputs[1:]))
        inner = self._magnitude(node.inputs[0])
        return operations.view(node, inner, 1) if self._network.constant_of(name) else inner

    def _is_real(self, name: str) -> bool:
        return self._network.shapes[name].dtype.name in operations.REAL

    def _refuse(self, node: ir.Node, what: str) -> UserError:
        return UserError(f"{operations.where(node)}: fixed point has none {what}; single precision has")

    def _plan(self, node: ir.Node) -> None:
        if not self._is_real(node.name):
            if node.op == "compare":
                self._plan_comparison(node)
            return
        first = node.inputs[0]
        others = ("conv", "dot", "cast", "select", *operations.VIEWS, *ir.BINARY)
        if node.op not in others and first not in self._bits and not self._network.constant_of(first):
            raise self._refuse(node, "of such operands")
        real = [n for n in node.inputs if n in self._network.shapes and self._is_real(n)]
        arrays = [n for n in real if not self._network.constant_of(n)]
        if node.op in ir.BINARY:
            self._bits[node.name] = 0
        elif node.op in fixed_functions.FUNCTIONS:
            self._plan_function(node)
        elif node.op == "integer_pow" and node.attributes["y"] == 2:
            self._plan_product_of(node, (first, first))
        elif node.op == "dot" and node.name not in self._network.kernels:
            self._plan_matrices(node)
        elif node.op == "conv" or (node.op == "dot" and node.name in self._network.kernels):
            self._plan_product(node)
        elif node.op == "cast":
            self._bits[node.name] = self._bits.get(node.inputs[0], 0)
        elif node.op == "sign":
            self._bits[node.name] = 0
        elif node.op in operations.SUMS:
            self._plan_sum(node)
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
        most = max(bits, default=0) if self._proving else self.fraction_bits
        one = bits.pop() if len(bits) == 1 else 0 if not bits else most
        operands = [self._magnitude(n) for n in node.inputs if self._is_real(n)]
        sums = [sum(operands)] if node.op in ("add", "sub") else operands
        self._bits[node.name] = min(one, self._room(*sums)) if one or whole else self._room(*sums)
        self._constants_at(node, names, self._bits[node.name])

    def _plan_sum(self, node: ir.Node) -> None:
        bits = self._bits[node.name] = self._bits[node.inputs[0]]
        readers = [n for n in self._loops if node.name in n.inputs]
        if [n.op for n in readers] == ["div"] and self._counts(readers[0]) is not None:
            self._wide.add(node.name)
        elif bits and self._proving:
            self._make_room(node, 0)

    def _make_room(self, node: ir.Node, shift: int) -> None:
        """Shifts sums by more than `shift`, if that is what makes them int32 on every image."""
        self._shifts[node.name] = shift
        self.ranges.add(node)
        most = max(map(abs, self.ranges.partial[node.name].ends()))
        more = max(0, (most + (1 << shift >> 1) >> shift).bit_length() - 31)
        # Rounding may be what is too much.
        self._shifts[node.name] += more + (more > 0)
        self._bits[node.name] -= more + (more > 0)

    def _is_whole(self, name: str) -> bool:
        values = self._network.constants[name]
        return bool((values == np.rint(values)).all() and np.abs(values).max() < 2**16)

    def _constants_at(self, node: ir.Node, names: Sequence[str], bits: int) -> None:
        for name in names:
            root = self._network.constant_of(name)
            if root:
                values = self._network.constants[root]
                self._fixed[node.name, root] = mantissas.at(root, values, bits)
                self._note_zeroed(root, self._fixed[node.name, root], values)

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
        if not factors:
            self._plan_product_of(node, node.inputs)
            return
        if len(factors) != 1:
            raise self._refuse(node, "of constants alone")
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
        self._set_factors(node, x, values, leaves, self._magnitude(x) * self._magnitude(factor))
        if not self._network.constant_of(factor):
            self._prove_choice(factor)

    def _plan_product_of(self, node: ir.Node, arrays: Sequence[str]) -> None:
        both = sum(self._bits[n] for n in arrays)
        room = self._room(math.prod(self._magnitude(n) for n in arrays))
        self._bits[node.name] = min(both, room)
        self._shifts[node.name] = both - self._bits[node.name]

    def _plan_matrices(self, node: ir.Node) -> None:
        """A product of two arrays of matrices, summed in int64."""
        if any(self._network.constant_of(n) for n in node.inputs):
            raise self._refuse(node, "of a matrix and what is no row")
        axes = node.attributes["contracting"][0]
        terms = math.prod(self._network.shapes[node.inputs[0]].shape[i] for i in axes)
        if (
            terms
            * math.prod(float(self._magnitude(n).max()) * 2.0 ** self._bits[n] for n in node.inputs)
            >= 2**62
        ):
            raise self._refuse(node, "of two arrays of so large numbers")
        both = sum(self._bits[n] for n in node.inputs)
        room = self._room(terms * math.prod(self._magnitude(n).max() for n in node.inputs))
        self._bits[node.name] = min(both, room)
        self._shifts[node.name] = both - self._bits[node.name]

    def _plan_function(self, node: ir.Node) -> None:
        (x,) = node.inputs
        bits, (low, high) = self._bits[x], self.ranges.of(x).ends()
        low, high = low * 2.0**-bits, high * 2.0**-bits
        if node.op == "exp":
            self._bits[node.name] = self._room(math.exp(min(high, 99.0)))
        elif node.op == "sqrt":
            self._bits[node.name] = min(self._room(max(high, 0) ** 0.5), (31 + bits) // 2)
        elif node.op == "rsqrt":
            self._bits[node.name] = self._room(low**-0.5 if low > 0 else math.inf)
        elif node.op in ("logistic", "tanh"):
            self._bits[node.name] = self._room(1.0)
        else:
            # A whole number nearby.
            self._bits[node.name] = min(bits, self._room(max(-low, high) + 1))

    def _prove_choice(self, name: str) -> None:
        node = self._network.nodes[name]
        if node.op in operations.VIEWS:
            self._prove_choice(node.inputs[0])
        self.ranges.add(node)

    def _set_factors(self, node, x, values, leaves, result) -> None:
        largest = leaves[max(leaves, key=lambda key: np.abs(values[key]).max())]
        bits = self._bits[node.name] = self._room(result)
        if len(leaves) > 1 and self._proving:
            bits = self._bits[node.name] = min(bits, self._bits[x] or bits)
        exponent = bits - self._bits[x]
        together = np.concatenate([v.reshape(-1) for v in values.values()])
        # What a choice multiplies elsewhere has the same factors.
        most = max(map(abs, self.ranges.of(x).ends())) if len(leaves) == 1 else self.limits[1]
        found, self._shifts[node.name] = _factors(largest, together, exponent, int(most))
        start = 0
        for key, array in values.items():
            part = found[start : start + array.size].reshape(array.shape)
            start += array.size
            if not np.array_equal(self._fixed.get(key, part), part):
                raise self._refuse(node, "of a choice between factors of two arrays")
            self._fixed[key] = part
            self._note_zeroed(leaves[key], part, array)

    def _note_zeroed(self, name: str, found: np.ndarray, source: np.ndarray) -> None:
        lost = int(np.sum((found == 0) & (np.abs(source) >= _TINY)))
        if lost:
            self.zeroed[name] = lost

    def _plan_division(self, node: ir.Node) -> None:
        root = self._network.constant_of(node.inputs[1])
        if not root:
            self._plan_ratio(node)
            return
        if node.inputs[0] in self._wide:
            self._bits[node.name] = self._bits[node.inputs[0]]
            self._fixed[node.name, root] = self._counts(node)
            self._means.add(node.name)
            # The mean of integers has a fraction.
            if not self._bits[node.name]:
                sums = self._magnitude(node.inputs[0])
                room = self._room(sums.max() / self._network.constants[root].min())
                self._shifts[node.name] = min(room, 61 - int(sums.max()).bit_length())
                self._bits[node.name] = self._shifts[node.name]
            return
        with np.errstate(all="ignore"):
            values = {(node.name, root): 1.0 / self._network.constants[root].astype(np.float64)}
        x = node.inputs[0]
        result = self._magnitude(x).max() * np.abs(values[node.name, root]).max()
        self._set_factors(node, x, values, {(node.name, root): root}, result)

    def _plan_ratio(self, node: ir.Node) -> None:
        """A division by an array: of `x * 2**shift`, at most 30 of them, so that int64 holds it."""
        x, y = node.inputs
        of_x = self._bits.get(x, self._room(self._magnitude(x)))
        self._constants_at(node, [x], of_x)
        low, high = self.ranges.of(y)
        least = np.where((low <= 0) & (high >= 0), 0, np.minimum(np.abs(low), np.abs(high))).min()
        room = self._room(self._magnitude(x).max() * 2.0 ** self._bits[y] / least if least else math.inf)
        self._shifts[node.name] = min(max(room + self._bits[y] - of_x, 0), 30)
        self._bits[node.name] = of_x + self._shifts[node.name] - self._bits[y]
        self._ratios.add(node.name)

    def _plan_layer(self, layer: IntegerLayer) -> None:
        """A layer in integers, whose sums are int32 on every image."""
        node = layer.node
        if layer.reads == "values" and node.inputs[0] not in self._bits:
            raise self._refuse(node, "of such operands")
        if layer.reads == "values":
            x = self.ranges.of(node.inputs[0])
            if any(self.narrowed(layer, end)[1].any() for end in x):
                largest = max(map(abs, x.ends()))
                self.cut[layer.name] = largest * 2.0 ** -self._bits[node.inputs[0]]
        sizes = np.maximum(*map(np.abs, self.ranges.layer_sums(layer))) * layer.scale
        self._bits[node.name], self._shifts[node.name] = self._room(sizes), 0
        name = node.inputs[1]
        scale = layer.scale.astype(np.float64)
        self._scales[node.name] = mantissas.of(name, scale, exponent=self._bits[node.name])
        self._note_zeroed(name, self._scales[node.name][0], scale)

    def _plan_product(self, node: ir.Node) -> None:
        if node.name in self.layers:
            self._plan_layer(self.layers[node.name])
            return
        found = self._network.kernels.get(node.name)
        x = node.inputs[0]
        if isinstance(found, Multiples):
            largest = float(found.scale.max())
            # After this shift the largest class's sums are its logits, or up to twice that.
            shift = min(max(0, -math.frexp(largest)[1]), mantissas.LARGEST_SHIFT)
            self._kernels[node.name] = found.values
            self._bits[node.name] = self._bits[x]
            if self._proving:
                self._make_room(node, shift)
                shift = self._shifts[node.name]
                sums = self.ranges.partial[node.name]
                sizes = np.maximum(*map(np.abs, sums)) * 2.0 ** -self._bits[x] * found.scale
                self._bits[node.name] = self._room(sizes)
            else:
                self._bits[node.name] = self.fraction_bits
            self._shifts[node.name] = shift
            exponent = self._bits[node.name] - self._bits[x] + shift
            name = found.scale_name
            self._scales[node.name] = mantissas.of(name, found.scale, exponent=exponent)
            self._note_zeroed(name, self._scales[node.name][0], found.scale)
            return
        kernel = values = np.asarray(self._network.constants[node.inputs[1]] if found is None else found)
        if x in self._network.tables and node.op == "conv":
            table = pixel_table(self._network, x)
            self._pixels[x], bits = mantissas.of(f"{x}/pixels", table, _PIXEL_BITS)
            largest = int(np.abs(self._pixels[x]).max())
            # What is left of a sum is as much as can fit into int32.
            kernel, weight_bits = mantissas.weights(node.inputs[1], kernel, max(largest, 1))
            shift = max(0, (mantissas.heaviest(kernel) * largest).bit_length() - 31)
        else:
            if x not in self._bits:
                raise self._refuse(node, "of such operands")
            kernel, weight_bits = mantissas.weights(node.inputs[1], kernel, 2**31)
            bits = self._bits[x]
            shift = max(0, bits + weight_bits - (bits or self.fraction_bits))
        shift = max(shift, bits + weight_bits - 30)
        self._kernels[node.name] = kernel
        self._note_zeroed(node.inputs[1], kernel, values)
        self._shifts[node.name] = shift
        self._bits[node.name] = bits + weight_bits - shift
        if self._proving:
            self._make_room(node, shift)


def _factors(name: str, values: np.ndarray, exponent: int, most: int) -> tuple[np.ndarray, int]:
    """Returns factors of numbers up to `most`, and their shift: small ones, if they are fine enough."""
    bits = 31 - most.bit_length()
    for narrow in (bits, bits - 1) if bits > _LEAST_FACTOR_BITS else ():
        with contextlib.suppress(mantissas.DoesNotFit):
            found, shift = mantissas.of(name, values, narrow, exponent)
            if most * int(np.abs(found).max()) + (1 << shift >> 1) <= Plan.limits[1]:
                return found, shift
    return mantissas.of(name, values, exponent=exponent)
