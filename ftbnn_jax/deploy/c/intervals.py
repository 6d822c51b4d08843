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
from typing import Any, NamedTuple

import numpy as np

from ftbnn_jax.deploy.c import functions, operations
from ftbnn_jax.deploy.c.integer_layers import IntegerLayer
from ftbnn_jax.deploy.c.schedule import COPY, Network
from ftbnn_jax.graph import ir

# What a binary product reads of numbers, by form.
_SIGNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "xnor": lambda x: np.where(x > 0, 1, -1),
    "and": lambda x: np.where(x > 0, 1, 0),
    "ternary": lambda x: np.where(x > 0, 1, np.where(x < 0, -1, 0)),
}


class Interval(NamedTuple):
    """The lowest and the highest number of an array.

    Attributes:
      low: as many axes as the array of one image has; a length of 1 stands for all places.
      high: likewise.
    """

    low: np.ndarray
    high: np.ndarray

    def hull(self, *others: "Interval") -> "Interval":
        """Returns what holds for a number that comes from any of them."""
        lows, highs = zip(self, *others, strict=True)
        least, most = lows[0], highs[0]
        for low, high in zip(lows[1:], highs[1:], strict=True):
            least, most = np.minimum(least, low), np.maximum(most, high)
        return Interval(least, most)

    def over(self, axes: Sequence[int]) -> "Interval":
        """Returns one interval for all places along some axes, which keep a length of 1."""
        return Interval(
            self.low.min(tuple(axes), keepdims=True), self.high.max(tuple(axes), keepdims=True)
        )

    def each(self, function: Callable[[np.ndarray], np.ndarray]) -> "Interval":
        """Returns what a function makes of both ends."""
        return Interval(function(self.low), function(self.high))

    def ends(self) -> tuple[Any, Any]:
        """Returns the lowest and the highest number of all places."""
        return self.low.min().item(), self.high.max().item()

    def is_within(self, low: Any, high: Any) -> bool:
        """Whether no number is beyond either limit; NaN is beyond all."""
        return bool((self.low >= low).all() and (self.high <= high).all())


def of_sums(kernel: np.ndarray, x: Interval) -> tuple[Interval, Interval]:
    """Returns the interval of sums of products, and that of all partial sums in any order.

    Args:
      kernel: `[..., I, O]`; whole numbers so small that no sum leaves int64, or real ones.
      x: of the inputs, `[I]`, at every position of the kernel.

    Returns:
      Two intervals, `[O]`.
    """
    # All positions of a kernel see the same numbers.
    kernel = kernel.reshape(-1, *kernel.shape[-2:])
    above, below = np.maximum(kernel, 0).sum(0), np.minimum(kernel, 0).sum(0)
    low, high = (end.astype(kernel.dtype) for end in x)
    total = Interval(low @ above + high @ below, high @ above + low @ below)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    return total, Interval(low @ above + high @ below, high @ above + low @ below)


def product(x: Interval, y: Interval) -> Interval:
    """Returns the interval of products of two whole numbers, int64."""
    return _span([a.astype(np.int64) * b for a in x for b in y])


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
        return _point(self._constant(node, name))

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
            _, partial = of_sums(weights, Interval(*(e[g] for e in ends)))
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
            return _viewed(node, operands[0], self._shape(node.inputs[0]))
        if node.op == COPY:
            return operands[0]
        if node.op == "dot":
            return self._matrices(node, *operands)
        if node.op in operations.FOLDS:
            return self._fold(node, operands[0])
        if node.op == "concatenate":
            return self._concatenated(node, operands)
        if node.op == "pad":
            return _padded(node, *operands)
        if node.op == "take":
            return _taken(node, *operands, self._shape(node.inputs[0]))
        (axis,) = (node.attributes["axis"],)
        shape = (1,) * len(self._shape(node.name))
        size = self._shape(node.inputs[0])[axis]
        return Interval(np.zeros(shape, np.int32), np.full(shape, size - 1, np.int32))

    # Elementwise.

    def _elementwise(self, node: ir.Node, operands: Sequence[Interval]) -> Interval:
        dtype = self._network.shapes[node.name].dtype
        if node.op == "compare" and node.attributes["direction"] in ("eq", "ne"):
            return _equality(node, *operands)
        if node.op in ("and", "or", "not") and dtype != np.bool_:
            return _all_of(dtype, operands)
        if node.op == "select":
            return self._selected(node, *operands)
        if self._divides_by_zero(node, operands):
            shape = np.broadcast_shapes(*(x.low.shape for x in operands))
            low, high = self._arithmetic.limits
            return Interval(np.full(shape, low), np.full(shape, high))
        corners = itertools.product(*(_ends(x) for x in operands))
        found = _span([self._arithmetic.elementwise(node, corner) for corner in corners])
        if _is_even(node) or (node.op == "mul" and len(set(node.inputs)) == 1):
            (x, *_) = operands
            # The least result is that of 0, or of what is nearest to it.
            squares = _span([self._arithmetic.elementwise(node, (e,) * len(operands)) for e in x])
            holds_0 = (x.low <= 0) & (x.high >= 0)
            found = Interval(np.where(holds_0, np.zeros_like(squares.low), squares.low), squares.high)
        if node.op in functions.FUNCTIONS:
            found = _beyond(found)
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
        wide = [[e.astype(np.float64) for e in _ends(x)] for x in operands]
        sizes = _span([np.asarray(exact(*corner)) for corner in itertools.product(*wide)])
        if sizes.is_within(limits.min, limits.max):
            return found
        return _all_of(limits.dtype, operands)

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
            sums, _ = of_sums(weights, Interval(*(e[inputs] for e in ends)))
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
            total, partial = of_sums(part, own)
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
            if outside and not _has_inside(node, size):
                lowest = operations.lowest(found.low.dtype)
                found = Interval(np.full_like(found.low, lowest), found.high)
            return _without(found, axes) if node.op == "reduce_max" else found
        if node.op == "window_sum":
            found = found.hull(found.each(np.zeros_like)) if outside else found
            found = found.each(lambda e: self._arithmetic.begin(e) * terms)
        # Of partial sums the terms below 0 may come first, or those above.
        if node.op == "reduce_sum":
            parts = Interval(x.low.clip(max=0), x.high.clip(min=0))
            self.partial[node.name] = self._added(parts, axes, size)
        else:
            self.partial[node.name] = found.hull(found.each(np.zeros_like))
        found = _without(found, axes) if node.op == "reduce_sum" else found
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


def _point(x: np.ndarray) -> Interval:
    return Interval(x, x)


def _ends(x: Interval) -> tuple[np.ndarray, ...]:
    return (x.low,) if x.low is x.high else x


def _span(found: Sequence[np.ndarray]) -> Interval:
    """Returns the interval of the least and the most of some results."""
    return _point(found[0]).hull(*map(_point, found[1:]))


def _beyond(x: Interval) -> Interval:
    """Returns an interval with room for what a function's last place has that is not monotone."""
    if x.low.dtype.kind == "f":
        return Interval(np.nextafter(x.low, -np.inf), np.nextafter(x.high, np.inf))
    return Interval(x.low - 1 - (np.abs(x.low) >> 26), x.high + 1 + (np.abs(x.high) >> 26))


def _is_even(node: ir.Node) -> bool:
    return node.op == "abs" or (node.op == "integer_pow" and not node.attributes["y"] % 2)


def _all_of(dtype: Any, operands: Sequence[Interval]) -> Interval:
    """Returns all numbers of a whole type."""
    limits = np.iinfo(dtype)
    shape = np.broadcast_shapes(*(x.low.shape for x in operands))
    return Interval(np.full(shape, limits.min, dtype), np.full(shape, limits.max, dtype))


def _equality(node: ir.Node, x: Interval, y: Interval) -> Interval:
    never = (x.high < y.low) | (y.high < x.low)
    always = (x.low == x.high) & (y.low == y.high) & (x.low == y.low)
    equal = Interval(always, ~never)
    return equal if node.attributes["direction"] == "eq" else Interval(~equal.high, ~equal.low)


def _viewed(node: ir.Node, x: Interval, size: Sequence[int]) -> Interval:
    a = node.attributes
    shape = ir.sized(a["shape"], 1) if "shape" in a else ()
    if node.op == "transpose":
        return x.each(lambda e: e.transpose(a["permutation"]))
    if node.op == "slice":
        start, limit = (ir.sized(a[name], 1) for name in ("start", "limit"))
        places = [slice(*t) for t in zip(start, limit, a["strides"], strict=True)]
        at = [p if n > 1 else slice(None) for n, p in zip(x.low.shape, places, strict=True)]
        return x.each(lambda e: e[tuple(at)])
    if node.op == "broadcast":
        lengths = [1] * len(shape)
        for axis, n in zip(a["axes"], x.low.shape, strict=True):
            lengths[axis] = n
        return x.each(lambda e: e.reshape(lengths))
    if x.low.size == 1:
        return x.each(lambda e: e.reshape((1,) * len(shape)))
    if len(shape) and shape[-1] == size[-1] == x.low.size == x.low.shape[-1]:
        return x.each(lambda e: e.reshape((1,) * (len(shape) - 1) + shape[-1:]))
    whole = x.each(lambda e: np.broadcast_to(e, size).reshape(shape))
    same = [i for i in range(len(shape)) if all((e == e.take([0], i)).all() for e in whole)]
    return whole.each(lambda e: e[tuple(slice(1) if i in same else slice(None) for i in range(e.ndim))])


def _padded(node: ir.Node, x: Interval, value: Interval) -> Interval:
    filling = value.each(lambda e: np.asarray(e).reshape((1,) * x.low.ndim).astype(x.low.dtype))
    edges = node.attributes["edges"]
    whole = [n > 1 for n in x.low.shape]
    if any(any(e) and not w for e, w in zip(edges, whole, strict=True)):
        x = x.hull(filling)
    own = tuple(e if w else (0, 0, 0) for e, w in zip(edges, whole, strict=True))
    inner = node._replace(attributes={"edges": own})
    ends = zip(x, filling, strict=True)
    return Interval(*(operations.moved(inner, [e, f.reshape(())]) for e, f in ends))


def _taken(node: ir.Node, x: Interval, places: Interval, size: Sequence[int]) -> Interval:
    axis, count = node.attributes["axis"], places.low.ndim
    known = places.low is places.high and x.low.shape[axis] == size[axis]
    if known:
        return x.each(lambda e: np.take(e, places.low, axis, mode="clip"))
    shape = (*x.low.shape[:axis], *(1,) * count, *x.low.shape[axis + 1 :])
    return x.over([axis]).each(lambda e: e.reshape(shape))


def _without(x: Interval, axes: Sequence[int]) -> Interval:
    return x.each(lambda e: e.squeeze(tuple(axes)))


def _has_inside(node: ir.Node, size: Sequence[int]) -> bool:
    """Whether every window holds a place that is not padding."""
    a = node.attributes
    for n, w, s, (low, high) in zip(size, a["window"], a["strides"], a["padding"], strict=True):
        last = (n + low + high - w) // s * s - low
        if w - 1 < low or last > n - 1:
            return False
    return True
