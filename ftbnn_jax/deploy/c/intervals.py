"""The lowest and the highest number of every place of an array, and what moves and sums make of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ftbnn_jax.deploy.c import operations
from ftbnn_jax.graph import ir


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
    return span([a.astype(np.int64) * b for a in x for b in y])


def point(x: np.ndarray) -> Interval:
    """Returns the interval of numbers that are known."""
    return Interval(x, x)


def distinct(x: Interval) -> tuple[np.ndarray, ...]:
    """Returns both ends, or one where they are the same array."""
    return (x.low,) if x.low is x.high else x


def span(found: Sequence[np.ndarray]) -> Interval:
    """Returns the interval of the least and the most of some results."""
    return point(found[0]).hull(*map(point, found[1:]))


def beyond(x: Interval) -> Interval:
    """Returns an interval with room for what a function's last place has that is not monotone."""
    if x.low.dtype.kind == "f":
        return Interval(np.nextafter(x.low, -np.inf), np.nextafter(x.high, np.inf))
    return Interval(x.low - 1 - (np.abs(x.low) >> 26), x.high + 1 + (np.abs(x.high) >> 26))


def all_of(dtype: Any, operands: Sequence[Interval]) -> Interval:
    """Returns all numbers of a whole type."""
    limits = np.iinfo(dtype)
    shape = np.broadcast_shapes(*(x.low.shape for x in operands))
    return Interval(np.full(shape, limits.min, dtype), np.full(shape, limits.max, dtype))


def equality(node: ir.Node, x: Interval, y: Interval) -> Interval:
    """Returns the interval, of booleans, of whether two numbers are equal, or not equal."""
    never = (x.high < y.low) | (y.high < x.low)
    always = (x.low == x.high) & (y.low == y.high) & (x.low == y.low)
    equal = Interval(always, ~never)
    return equal if node.attributes["direction"] == "eq" else Interval(~equal.high, ~equal.low)


def viewed(node: ir.Node, x: Interval, size: Sequence[int]) -> Interval:
    """Returns the interval of a view of an array of one image, whose shape is `size`."""
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


def padded(node: ir.Node, x: Interval, value: Interval) -> Interval:
    """Returns the interval of an array with a number around it."""
    filling = value.each(lambda e: np.asarray(e).reshape((1,) * x.low.ndim).astype(x.low.dtype))
    edges = node.attributes["edges"]
    whole = [n > 1 for n in x.low.shape]
    if any(any(e) and not w for e, w in zip(edges, whole, strict=True)):
        x = x.hull(filling)
    own = tuple(e if w else (0, 0, 0) for e, w in zip(edges, whole, strict=True))
    inner = node._replace(attributes={"edges": own})
    ends = zip(x, filling, strict=True)
    return Interval(*(operations.moved(inner, [e, f.reshape(())]) for e, f in ends))


def taken(node: ir.Node, x: Interval, places: Interval, size: Sequence[int]) -> Interval:
    """Returns the interval of what lies at places along an axis of an array of shape `size`."""
    axis, count = node.attributes["axis"], places.low.ndim
    known = places.low is places.high and x.low.shape[axis] == size[axis]
    if known:
        return x.each(lambda e: np.take(e, places.low, axis, mode="clip"))
    shape = (*x.low.shape[:axis], *(1,) * count, *x.low.shape[axis + 1 :])
    return x.over([axis]).each(lambda e: e.reshape(shape))


def without(x: Interval, axes: Sequence[int]) -> Interval:
    """Returns an interval without axes of length 1."""
    return x.each(lambda e: e.squeeze(tuple(axes)))


def has_inside(node: ir.Node, size: Sequence[int]) -> bool:
    """Whether every window holds a place that is not padding."""
    a = node.attributes
    for n, w, s, (low, high) in zip(size, a["window"], a["strides"], a["padding"], strict=True):
        last = (n + low + high - w) // s * s - low
        if w - 1 < low or last > n - 1:
            return False
    return True
