"""What the C program does with each operation of a graph: which ones it has, and what they compute.

Elementwise operations in numpy, as the text that `emit` writes for them computes them: every result is
rounded by itself. Numbers of 16 bits are float32 numbers that are rounded to them.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ftbnn_jax.deploy.c import functions
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir

REAL = ("float32", "float16", "bfloat16")
VIEWS = ("reshape", "transpose", "broadcast", "slice")
_ARITHMETIC: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": lambda x, y: np.where(x > y, x, y),
    "min": lambda x, y: np.where(x < y, x, y),
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "neg": np.negative,
    "abs": np.abs,
    "not": np.invert,
    "sign": lambda x: (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype),
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
}
# From here on a number counts as positive.
_LEAST = float(np.finfo(np.float32).tiny)
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
ELEMENTWISE = (*_ARITHMETIC, *functions.FUNCTIONS, "compare", "select", "cast", "integer_pow")
SUMS = ("window_sum", "reduce_sum")
FOLDS = ("window_sum", "window_max", "reduce_sum", "reduce_max")
KERNELS = (*ir.BINARY, *FOLDS, "conv", "dot", "concatenate", "pad", "take", "argmax")
_REAL_ALONE = (*functions.FUNCTIONS, "div", "floor", "ceil", "round", "integer_pow")


def where(node: ir.Node) -> str:
    """Returns how messages call a node."""
    return f"{node.layer or 'the network'}: {node.op}"


def signed(nodes: Mapping[str, ir.Node], constants: Mapping[str, np.ndarray], name: str) -> str:
    """Returns the array of which another one is the signs, -1, 0 and 1, as a binary product packs them.

    Args:
      nodes: of the graph by name.
      constants: arrays that are the same for all images.
      name: of what may be signs; it is returned if it is no such thing.
    """
    sub = nodes.get(name)
    found = []
    for side, direction, limit in ((0, "ge", _LEAST), (1, "le", -_LEAST)):
        cast = nodes.get(sub.inputs[side]) if sub is not None and sub.op == "sub" else None
        compare = nodes.get(cast.inputs[0]) if cast is not None and cast.op == "cast" else None
        if compare is None or compare.op != "compare" or compare.attributes["direction"] != direction:
            return name
        constant = constants.get(compare.inputs[1])
        if constant is None or constant.size != 1 or constant.item() != limit:
            return name
        found.append(compare.inputs[0])
    return found[0] if found[0] == found[1] else name


def check(node: ir.Node, operands: Sequence[Any], result: Any) -> None:
    """Raises a UserError where there is no such operation in C.

    Args:
      node: the operation.
      operands: of which shape and dtype they are.
      result: likewise.
    """

    def refuse(why: str, instead: str) -> None:
        raise UserError(f"{where(node)}: the C program has {why}; {instead} would do")

    a = node.attributes
    if node.op not in (*ELEMENTWISE, *VIEWS, *KERNELS):
        refuse("no such operation", "one of " + ", ".join(sorted(functions.FUNCTIONS)))
    if node.op in _REAL_ALONE and operands[0].dtype.name not in REAL:
        refuse(f"none of {operands[0].dtype.name}", "float32")
    if "uint32" in (result.dtype.name, operands[0].dtype.name):
        refuse("no uint32", "int32")
    if node.op == "conv":
        if set(a["input_dilation"]) != {1}:
            refuse("no transposed convolution", "zeros put between the inputs beforehand")
        if len(a["strides"]) not in (1, 2):
            refuse(f"none of {len(a['strides'])} dimensions", "1 or 2")
        if min(itertools.chain(*a["padding"])) < 0:
            refuse("none that cuts its input at the edges", "a slice in front of it")
        if operands[0].dtype.name not in REAL:
            refuse(f"none of {operands[0].dtype.name}", "float32")
    if node.op == "dot" and operands[0].dtype.name not in REAL:
        refuse(f"none of {operands[0].dtype.name}", "float32")


def rounded(x: np.ndarray, dtype: Any) -> np.ndarray:
    """Returns numbers of a graph's dtype as the program holds them: float32, bool, or integers."""
    dtype = jnp.dtype(dtype)
    return x.astype(dtype).astype(np.float32) if dtype.name in REAL else x.astype(dtype)


def elementwise(node: ir.Node, operands: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    """Computes an elementwise operation.

    Args:
      node: one of `ELEMENTWISE`.
      operands: of shapes that numpy broadcasts.
      dtype: of the result in the graph.
    """
    a = node.attributes
    with np.errstate(all="ignore"):
        if node.op == "compare":
            return {
                "eq": np.equal,
                "ne": np.not_equal,
                "lt": np.less,
                "le": np.less_equal,
                "gt": np.greater,
                "ge": np.greater_equal,
            }[a["direction"]](*operands)
        if node.op == "select":
            which, x, y = operands
            return np.where(which, y, x)
        if node.op in functions.FUNCTIONS:
            return rounded(functions.apply(node.op, operands[0]), dtype)
        if node.op == "integer_pow":
            return _power(operands[0], a["y"], dtype)
        if node.op == "cast":
            return rounded(np.asarray(operands[0]), dtype)
        return rounded(np.asarray(_ARITHMETIC[node.op](*operands)), dtype)


def multiplications(power: int) -> list[tuple[str, str, str]]:
    """Returns how a power is multiplied out, as XLA does it: results, and the two factors, by name.

    "x" is the base; the last result is the power of the number's magnitude.
    """
    found: list[tuple[str, str, str]] = []
    total, square, left = "", "x", abs(power)
    while left:
        if left & 1:
            if total:
                found.append((f"p{len(found)}", total, square))
                total = found[-1][0]
            else:
                total = square
        left >>= 1
        if left:
            found.append((f"p{len(found)}", square, square))
            square = found[-1][0]
    if total and (not found or found[-1][0] != total):
        found.append(("last", total, ""))
    return found


def _power(x, power, dtype):
    if not power:
        return np.ones_like(x)
    known, result = {"x": x}, x
    for name, first, second in multiplications(power):
        result = known[first] if not second else rounded(known[first] * known[second], dtype)
        known[name] = result
    return result if power > 0 else rounded(np.float32(1) / result, dtype)


def view(node: ir.Node, x: np.ndarray, batch: int) -> np.ndarray:
    """Computes one of `VIEWS` for a batch."""
    a = {
        name: ir.sized(value, batch) if name in ("shape", "start", "limit") else value
        for name, value in node.attributes.items()
    }
    if node.op == "reshape":
        return x.reshape(a["shape"])
    if node.op == "transpose":
        return x.transpose(a["permutation"])
    if node.op == "slice":
        return x[tuple(map(slice, a["start"], a["limit"], a["strides"]))]
    spread = [1] * len(a["shape"])
    for axis, size in zip(a["axes"], x.shape, strict=True):
        spread[axis] = size
    return np.broadcast_to(x.reshape(spread), a["shape"])


def fold(node: ir.Node, x: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns the values that each result of a sum or maximum is made of, in the order of C.

    Returns:
      `[how many, *shape of the result]`; what lies outside is the dtype's lowest number, or 0.
    """
    a = node.attributes
    if node.op.startswith("reduce"):
        axes = a["axes"]
        kept = tuple(i for i in range(x.ndim) if i not in axes)
        moved = x.transpose(*axes, *kept)
        return moved.reshape(math.prod(x.shape[i] for i in axes), *(x.shape[i] for i in kept))
    padded = np.pad(x, a["padding"], constant_values=lowest(x.dtype) if "max" in node.op else 0)
    counts = [(n - w) // s + 1 for n, w, s in zip(padded.shape, a["window"], a["strides"], strict=True)]
    parts = []
    for first in itertools.product(*map(range, a["window"])):
        at = zip(first, counts, a["strides"], strict=True)
        parts.append(padded[tuple(slice(f, f + (n - 1) * s + 1, s) for f, n, s in at)])
    return np.stack(parts)


def lowest(dtype: np.dtype) -> Any:
    """Returns what a maximum begins with."""
    if dtype.kind == "f":
        return -np.inf
    return False if dtype.kind == "b" else np.iinfo(dtype).min


def moved(node: ir.Node, operands: Sequence[np.ndarray]) -> np.ndarray:
    """Computes what only moves numbers: concatenate, pad, take, argmax."""
    a = node.attributes
    if node.op == "concatenate":
        return np.concatenate(operands, a["axis"])
    if node.op == "take":
        x, places = operands
        return np.take(x, places, a["axis"], mode="clip")
    if node.op == "argmax":
        return np.argmax(operands[0], a["axis"]).astype(np.int32)
    x, value = operands
    sizes = [
        low + high + n + max(n - 1, 0) * between
        for n, (low, high, between) in zip(x.shape, a["edges"], strict=True)
    ]
    out = np.full(sizes, value, x.dtype)
    inner, source = [], []
    for n, size, (low, _, between) in zip(x.shape, sizes, a["edges"], strict=True):
        places = low + (between + 1) * np.arange(n)
        source.append(np.flatnonzero((places >= 0) & (places < size)))
        inner.append(places[source[-1]])
    out[np.ix_(*inner)] = x[np.ix_(*source)]
    return out
