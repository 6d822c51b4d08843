"""Between which numbers every value of a program lies, whatever the image.

An abstract interpreter: each array has a lowest and a highest number for every place, or for all places
along an axis at once. Nearly every operation is monotone in each of its operands, rounding included, so
that the ends of its result are among the results of its operands' ends, computed as the program computes
them. What two operands have in common is lost: of `x - x` it is known that it lies between `low - high`
and `high - low`.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ftbnn_jax.deploy.c import functions, intervals, operations
from ftbnn_jax.deploy.c.integer_layers import IntegerLayer
from ftbnn_jax.deploy.c.intervals import Interval
from ftbnn_jax.deploy.c.schedule import COPY, Network
from ftbnn_jax.graph import ir

# What a binary product reads of numbers, by form.
_SIGNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "xnor": lambda x: np.where(x > 0, 1, -1),
    "and": lambda x: np.where(x > 0, 1, 0),
    "ternary": lambda x: np.where(x > 0, 1, np.where(x < 0, -1, 0)),
}


class Ranges:
    """Intervals of a network's values; `add` finds those of one node after the other.

    Args:
      network: the loops.
      arithmetic: computes what the program computes.

    Attributes:
      exact: by node, the interval of a result before what leaves its type becomes the type's end.
      partial: by sum or product of matrices, the interval of partial sums in any order.
    """

    def __init__(self, network: Network, arithmetic: Any):
        self._network = network
        self._arithmetic = arithmetic
        self.exact: dict[str, Interval] = {}
        self.partial: dict[str, Interval] = {}
        self._known = {network.graph.input: self._images()}

    def of(self, name: str) -> Interval:
        """Returns the interval of an array, of the images or of a node that was added."""
        return self._known[name]

    def __contains__(self, name: str) -> bool:
        """Whether there is an interval of an array."""
        return name in self._known

    def operand(self, node: ir.Node, name: str) -> Interval:
        """Returns the interval of an operand of a node, which may be a constant or a view of one."""
        if name in self._known:
            return self._known[name]
        return intervals.point(self._constant(node, name))

    def add(self, node: ir.Node) -> None:
        """Finds the interval of a node whose operands are known or constant."""
        with np.errstate(all="ignore"):
            found = self._result(node)
        found = Interval(*(np.asarray(end) for end in found))
        if any(end.dtype.kind == "f" and np.isnan(end).any() for end in found):
            found = Interval(np.full_like(found.low, -np.inf), np.full_like(found.high, np.inf))
        self.exact[node.name] = found
        low, high = self._arithmetic.limits
        kept = found.low.dtype == np.int64 and not self._arithmetic.is_wide(node)
        self._known[node.name] = found.each(lambda end: np.clip(end, low, high)) if kept else found

    def _images(self) -> Interval:
        graph = self._network.graph
        shape = (1,) * len(graph.shape)
        dtype = np.dtype(graph.dtype) if graph.dtype not in operations.REAL else np.dtype(np.float32)
        limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        ends = (self._arithmetic.input(np.full(shape, n, dtype)) for n in (limits.min, limits.max))
        return Interval(*ends)

    def _constant(self, reader: ir.Node, name: str) -> np.ndarray:
        if name in self._network.constants:
            return self._arithmetic.constant(reader, name)
        node = self._network.nodes[name]
        return operations.view(node, self._constant(reader, node.inputs[0]), 1)

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._network.shapes[name].shape)

    def layer_sums(self, layer: IntegerLayer) -> Interval:
        """Returns the interval of a layer's sums, `[1, ..., O]`: of partial ones in any order."""
        groups, rank = layer.sizes["groups"], len(self._shape(layer.node.name))
        inputs, outputs = layer.weights.shape[2], layer.weights.shape[3] // groups
        if layer.table is not None:
            x = Interval(layer.table.min(1), layer.table.max(1))
        else:
            x = self._known[layer.node.inputs[0]].each(lambda e: self._arithmetic.narrowed(layer, e)[0])
            x = x.over(range(x.low.ndim - 1))
        ends = [np.broadcast_to(e.reshape(-1), (inputs * groups,)).reshape(groups, inputs) for e in x]
        sums = []
        for g in range(groups):
            weights = layer.weights[..., g * outputs : (g + 1) * outputs]
            _, partial = intervals.of_sums(weights, Interval(*(e[g] for e in ends)))
            sums.append(partial)
        bias = layer.bias[0].reshape(-1, layer.weights.shape[3])
        low = np.concatenate([s.low for s in sums]) + np.minimum(bias.min(0), 0)
        high = np.concatenate([s.high for s in sums]) + np.maximum(bias.max(0), 0)
        return Interval(*(e.reshape((1,) * (rank - 1) + (-1,)) for e in (low, high)))

    def _result(self, node: ir.Node) -> Interval:
        if node.name in self._arithmetic.layers:
            layer = self._arithmetic.layers[node.name]
            self.partial[node.name] = self.layer_sums(layer)
            return self.partial[node.name].each(lambda e: self._arithmetic.from_integers(layer, e))
        table = self._arithmetic.table_of(node)
        if table is not None:
            ends = table.astype(np.int64 if table.dtype.kind == "i" else table.dtype)
            x = Interval(*(e.reshape(1, 1, 1, -1) for e in (ends.min(-1), ends.max(-1))))
            return self._products(node, x)
        if node.op in ir.BINARY:
            return self._binary(node)
        if node.op == "conv" or node.name in self._network.kernels:
            return self._products(node, self.operand(node, node.inputs[0]))
        operands = [self.operand(node, name) for name in node.inputs]
        if node.op in operations.ELEMENTWISE:
            return self._elementwise(node, operands)
        if node.op in operations.VIEWS:
            return intervals.viewed(node, operands[0], self._shape(node.inputs[0]))
        if node.op == COPY:
            return operands[0]
        if node.op == "dot":
            return self._matrices(node, *operands)
        if node.op in operations.FOLDS:
            return self._fold(node, operands[0])
        if node.op == "concatenate":
            return self._concatenated(node, operands)
        if node.op == "pad":
            return intervals.padded(node, *operands)
        if node.op == "take":
            return intervals.taken(node, *operands, self._shape(node.inputs[0]))
        (axis,) = (node.attributes["axis"],)
        shape = (1,) * len(self._shape(node.name))
        size = self._shape(node.inputs[0])[axis]
        return Interval(np.zeros(shape, np.int32), np.full(shape, size - 1, np.int32))

    # Elementwise.

    def _elementwise(self, node: ir.Node, operands: Sequence[Interval]) -> Interval:
        dtype = self._network.shapes[node.name].dtype
        if node.op == "compare" and node.attributes["direction"] in ("eq", "ne"):
            return intervals.equality(node, *operands)
        if node.op in ("and", "or", "not") and dtype != np.bool_:
            return intervals.all_of(dtype, operands)
        if node.op == "select":
            return self._selected(node, *operands)
        if self._divides_by_zero(node, operands):
            shape = np.broadcast_shapes(*(x.low.shape for x in operands))
            low, high = self._arithmetic.limits
            return Interval(np.full(shape, low), np.full(shape, high))
        corners = itertools.product(*(intervals.distinct(x) for x in operands))
        found = intervals.span([self._arithmetic.elementwise(node, corner) for corner in corners])
        if _is_even(node) or (node.op == "mul" and len(set(node.inputs)) == 1):
            (x, *_) = operands
            # The least result is that of 0, or of what is nearest to it.
            squares = intervals.span(
                [self._arithmetic.elementwise(node, (e,) * len(operands)) for e in x]
            )
            holds_0 = (x.low <= 0) & (x.high >= 0)
            found = Interval(np.where(holds_0, np.zeros_like(squares.low), squares.low), squares.high)
        if node.op in functions.FUNCTIONS:
            found = intervals.beyond(found)
        if dtype.kind in "iu" and node.op in ("add", "sub", "mul", "neg", "abs", "cast"):
            return self._wrapped(node, operands, found)
        return found

    def _divides_by_zero(self, node: ir.Node, operands: Sequence[Interval]) -> bool:
        negative = node.op == "integer_pow" and node.attributes["y"] < 0
        if node.op != "div" and not negative:
            return False
        divisor = operands[-1]
        return bool(((divisor.low <= 0) & (divisor.high >= 0)).any())

    def _wrapped(self, node: ir.Node, operands: Sequence[Interval], found: Interval) -> Interval:
        """Returns `found`, or all numbers of its type where one may not fit into that."""
        limits = np.iinfo(self._network.shapes[node.name].dtype)
        exact = {"cast": lambda x: x, **_EXACT}[node.op]
        wide = [[e.astype(np.float64) for e in intervals.distinct(x)] for x in operands]
        sizes = intervals.span([np.asarray(exact(*corner)) for corner in itertools.product(*wide)])
        if sizes.is_within(limits.min, limits.max):
            return found
        return intervals.all_of(limits.dtype, operands)

    def _selected(self, node: ir.Node, which: Interval, x: Interval, y: Interval) -> Interval:
        false, true = np.zeros_like(which.low, bool), np.ones_like(which.low, bool)
        parts = [
            Interval(
                *(self._arithmetic.elementwise(node, [bit, a, b]) for a, b in zip(x, y, strict=True))
            )
            for bit in (false, true)
        ]
        both = parts[0].hull(parts[1])
        low, high = which.low.astype(bool), which.high.astype(bool)
        return Interval(
            *(
                np.where(low, second, np.where(high, either, first))
                for first, second, either in zip(*parts, both, strict=True)
            )
        )

    # Sums.

    def _binary(self, node: ir.Node) -> Interval:
        # A product of signs is a convolution with weights of -1 and +1.
        product = next(p for p in self._network.products if p.node.name == node.name)
        signs = self._known[node.inputs[0]].each(_SIGNS[product.form])
        signs = self._with_padding(node, signs)
        ends = [np.broadcast_to(e, (1,) * (e.ndim - 1) + product.shape[-1:]).reshape(-1) for e in signs]
        lows, highs, start = [], [], 0
        for kernel in product.kernels:
            inputs = slice(start, start + kernel.shape[-2])
            start += kernel.shape[-2]
            weights = np.where(kernel, 1, -1).astype(np.int64)
            sums, _ = intervals.of_sums(weights, Interval(*(e[inputs] for e in ends)))
            lows.append(sums.low)
            highs.append(sums.high)
        shape = (1,) * (len(self._shape(node.name)) - 1) + (-1,)
        sums = Interval(*(np.concatenate(part).reshape(shape) for part in (lows, highs)))
        return sums.each(lambda e: self._arithmetic.integers(node, e))

    def _with_padding(self, node: ir.Node, x: Interval) -> Interval:
        """Returns one interval a channel, with what a kernel sees outside."""
        x = x.over(range(x.low.ndim - 1))
        if any(map(any, node.attributes.get("padding", ()))):
            x = x.hull(x.each(np.zeros_like))
        return x

    def _products(self, node: ir.Node, x: Interval) -> Interval:
        x = self._with_padding(node, x)
        kernel = self._arithmetic.begin(self._arithmetic.kernel(node))
        groups = node.attributes.get("groups", 1)
        inputs, outputs = kernel.shape[-2], kernel.shape[-1] // groups
        ends = [
            np.broadcast_to(e.reshape(-1), (inputs * groups,)) for e in x.each(self._arithmetic.begin)
        ]
        totals, partials = [], []
        for g in range(groups):
            part = kernel[..., g * outputs : (g + 1) * outputs]
            own = Interval(*(e[g * inputs : (g + 1) * inputs] for e in ends))
            total, partial = intervals.of_sums(part, own)
            totals.append(total)
            partials.append(partial)
        shape = (1,) * (len(self._shape(node.name)) - 1) + (-1,)
        total, self.partial[node.name] = (
            Interval(*(np.concatenate(e).reshape(shape) for e in zip(*parts, strict=True)))
            for parts in (totals, partials)
        )
        return self._from_sums(node, total, kernel[..., 0].size)

    def _matrices(self, node: ir.Node, x: Interval, y: Interval) -> Interval:
        terms = math.prod(self._shape(node.inputs[0])[i] for i in node.attributes["contracting"][0])
        shape = (1,) * len(self._shape(node.name))
        # Python's whole numbers are exact, however large.
        corners = [terms * a * b for a in x.ends() for b in y.ends()]
        dtype = self._arithmetic.begin(x.low).dtype
        ends = (np.full(shape, end, dtype) for end in (min(corners), max(corners)))
        return self._from_sums(node, Interval(*ends), terms)

    def _added(self, x: Interval, axes: Sequence[int], size: Sequence[int]) -> Interval:
        """Returns sums along axes; where places have numbers of their own, these are added."""

        def total(end):
            end = self._arithmetic.begin(end)
            times = math.prod(size[axis] // end.shape[axis] for axis in axes)
            return end.sum(tuple(axes), keepdims=True) * times

        return x.each(total)

    def _fold(self, node: ir.Node, x: Interval) -> Interval:
        size = self._shape(node.inputs[0])
        a = node.attributes
        if node.op.startswith("reduce"):
            axes, terms = a["axes"], math.prod(size[i] for i in a["axes"])
        else:
            axes = tuple(i for i, w in enumerate(a["window"]) if w > 1 or a["strides"][i] > 1)
            axes += tuple(i for i, pair in enumerate(a["padding"]) if any(pair) and i not in axes)
            terms = math.prod(a["window"])
        if node.op == "reduce_sum":
            found = self._added(x, axes, size)
        elif node.op == "reduce_max":
            found = x.each(lambda e: e.max(tuple(axes), keepdims=True))
        else:
            found = x.over(axes)
        outside = node.op.startswith("window") and any(map(any, a["padding"]))
        if node.op.endswith("max"):
            if outside and not intervals.has_inside(node, size):
                lowest = operations.lowest(found.low.dtype)
                found = Interval(np.full_like(found.low, lowest), found.high)
            return intervals.without(found, axes) if node.op == "reduce_max" else found
        if node.op == "window_sum":
            found = found.hull(found.each(np.zeros_like)) if outside else found
            found = found.each(lambda e: self._arithmetic.begin(e) * terms)
        # Of partial sums the terms below 0 may come first, or those above.
        if node.op == "reduce_sum":
            parts = Interval(x.low.clip(max=0), x.high.clip(min=0))
            self.partial[node.name] = self._added(parts, axes, size)
        else:
            self.partial[node.name] = found.hull(found.each(np.zeros_like))
        found = intervals.without(found, axes) if node.op == "reduce_sum" else found
        return self._from_sums(node, found, terms)

    def _from_sums(self, node: ir.Node, sums: Interval, terms: int) -> Interval:
        if sums.low.dtype.kind == "f":
            # Each of the roundings is relative to a partial sum.
            unit = 2.0**-24 * (terms + 2)
            size = np.maximum(*(np.abs(e) for e in self.partial.get(node.name, sums)))
            size = (
                size.reshape(sums.low.shape) * unit if size.size == sums.low.size else size.max() * unit
            )
            sums = Interval(sums.low - size, sums.high + size)
        return sums.each(lambda e: self._arithmetic.from_sums(node, e))

    def _concatenated(self, node: ir.Node, operands: Sequence[Interval]) -> Interval:
        axis = node.attributes["axis"]
        ends = []
        for end in zip(*operands, strict=True):
            shapes = [list(e.shape) for e in end]
            common = list(
                np.broadcast_shapes(*([1 if i == axis else n for i, n in enumerate(s)] for s in shapes))
            )
            spread = []
            for e, name in zip(end, node.inputs, strict=True):
                common[axis] = self._shape(name)[axis]
                spread.append(np.broadcast_to(e, common))
            ends.append(np.concatenate(self._arithmetic.join(node, spread), axis))
        return Interval(*ends)


_EXACT: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "abs": np.abs,
}


def _is_even(node: ir.Node) -> bool:
    return node.op == "abs" or (node.op == "integer_pow" and not node.attributes["y"] % 2)
