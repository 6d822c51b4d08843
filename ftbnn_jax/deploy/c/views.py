"""How arrays are read in what is stored: reshaping, slicing and the like, without a copy."""

import dataclasses
import math
from collections.abc import Sequence

from ftbnn_jax.deploy.c import operations
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir


@dataclasses.dataclass(frozen=True)
class View:
    """How an array is read in what is stored.

    Attributes:
      root: name of what is stored: an input, a constant, or a node's result.
      offset: of the first element.
      strides: from element to element along each axis; 0 where it is the same one.
      shape: of the array.
    """

    root: str
    offset: int
    strides: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def in_order(self) -> bool:
        """Whether the elements lie one behind the other."""
        return all(
            n == 1 or s == w
            for n, s, w in zip(self.shape, self.strides, strides_of(self.shape), strict=True)
        )

    def spread(self, shape: Sequence[int]) -> "View":
        """Returns the view of a larger shape that numpy's broadcasting gives."""
        missing = len(shape) - len(self.shape)
        inner = zip(self.shape, self.strides, shape[missing:], strict=True)
        strides = (0,) * missing + tuple(0 if n == 1 != m else s for n, s, m in inner)
        return dataclasses.replace(self, strides=strides, shape=tuple(shape))


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the strides of an array whose elements lie in order."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def view_of(nodes, shapes, stored, name: str) -> View:
    """Returns how an array is read.

    Args:
      nodes: of the graph, by name.
      shapes: of all arrays, by name.
      stored: names of what is stored.
      name: of the array.

    Raises:
      UserError: what is reshaped lies in no order.
    """
    shape = tuple(shapes[name].shape)
    node = nodes.get(name)
    if node is None or name in stored or node.op not in operations.VIEWS:
        return View(name, 0, strides_of(shape), shape)
    inner = view_of(nodes, shapes, stored, node.inputs[0])
    a = node.attributes
    if node.op == "reshape":
        strides = reshaped(inner, shape)
        if strides is None:
            raise UserError(f"{operations.where(node)}: what is reshaped lies in no order")
        return dataclasses.replace(inner, strides=strides, shape=shape)
    if node.op == "transpose":
        strides = tuple(inner.strides[i] for i in a["permutation"])
        return dataclasses.replace(inner, strides=strides, shape=shape)
    if node.op == "slice":
        start = ir.sized(a["start"], 1)
        offset = inner.offset + sum(s * t for s, t in zip(start, inner.strides, strict=True))
        strides = tuple(s * t for s, t in zip(inner.strides, a["strides"], strict=True))
        return View(inner.root, offset, strides, shape)
    strides = [0] * len(shape)
    for axis, size, stride in zip(a["axes"], inner.shape, inner.strides, strict=True):
        strides[axis] = stride if size == shape[axis] else 0
    return dataclasses.replace(inner, strides=tuple(strides), shape=shape)


def reshaped(view: View, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Returns the strides of a reshaped view; None where it needs a copy."""
    if view.in_order:
        return strides_of(shape)
    there = [(n, s) for n, s in zip(view.shape, view.strides, strict=True) if n != 1]
    if [n for n, _ in there] != [n for n in shape if n != 1]:
        return None
    left = iter(there)
    return tuple(0 if n == 1 else next(left)[1] for n in shape)
