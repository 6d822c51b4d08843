"""From a traced program to a graph: the one file that knows JAX's primitives and their parameters.

Calls are followed, what does not depend on the input is computed once, what is never read is dropped.
Nothing is re-associated: a last place that changes can turn a sign.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir, walk
from ftbnn_jax.graph.trace import Traced
from ftbnn_jax.graph.values import Value, words
from ftbnn_jax.graph.walk import Array, Step


@dataclasses.dataclass(frozen=True)
class Product:
    """A convolution or a product of matrices that reads the input.

    Attributes:
      number: its place among the program's products.
      node: of the graph that computes it.
      x: what is known of the first operand of the node.
      shape: of the first operand.
      fixed: the numbers of the second operand where they are the same for every input.
      source: file and line in the user's code.
      operands: from the operands of the program's product to those of the node.
      result: from the result of the program's product to that of the node.
    """

    number: int
    node: ir.Node
    x: Value
    shape: tuple[int, ...]
    fixed: np.ndarray | None
    source: str
    operands: Callable[[Any, Any], tuple[Any, Any]]
    result: Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A graph without binary products, and what is known of its products.

    Attributes:
      graph: what the program computes.
      products: by the name of the node.
      replaced: layers whose straight-through estimator, a sum, became the sign it stands for.
    """

    graph: ir.Graph
    products: dict[str, Product]
    replaced: tuple[str, ...]


def lower(traced: Traced) -> Lowered:
    """Makes a graph of a traced program.

    Raises:
      UserError: it holds an operation that no graph has: a loop or a choice that depends on the input, a
        random number, or a primitive that is not in the table; the line names layer and primitive.
    """
    lowering = _Lowering()
    lowering.names[traced.image] = "images"
    steps, (result,) = walk.collect(walk.walk(traced.program, traced.arguments, compute=True))
    for step in steps:
        lowering.add(step)
    return lowering.finish(traced.image, result)


def is_product(step: Step) -> bool:
    """Whether a step is a product of the program that reads the input; these are numbered in order."""
    return step.name in _PRODUCTS and any(x.value.from_input for x in step.operands)


_PRODUCTS = frozenset(["conv_general_dilated", "dot_general"])


class _Lowering:
    def __init__(self):
        self.names: dict[Array, str] = {}
        self._nodes: list[ir.Node] = []
        self._tensors: dict[str, np.ndarray] = {}
        self._taken = {"images"}
        self._products: dict[str, Product] = {}
        self._replaced: dict[str, None] = {}
        # Arrays that no graph can compute, and why: no mistake unless something is made of them.
        self._refused: dict[Array, UserError] = {}
        self._count = 0

    def add(self, step: Step) -> None:
        number = self._count
        self._count += is_product(step)
        if step.replaced is not None:
            self._replaced[step.layer] = None
        # Calls, what only names an array, what was there before, and what is computed already.
        if step.calls or all(self._is_there(x) for x in step.results):
            return
        emit = _EMIT.get(step.name, _refuse)
        try:
            for x in step.operands:
                self._check(x)
            emitted = emit(self, step, number) if is_product(step) else emit(self, step)
        except UserError as error:
            self._refused.update(dict.fromkeys(step.results, error))
            return
        emitted = [emitted] if isinstance(emitted, str) else emitted
        self.names.update(zip(step.results, emitted, strict=True))

    def _is_there(self, x: Array) -> bool:
        return x in self.names or x.numbers is not None

    def finish(self, image: Array, result: Array) -> Lowered:
        if not result.value.from_input:
            raise UserError("the network: its result does not depend on the images")
        self._check(result)
        output, nodes = self.names[result], tuple(self._nodes)
        head = ("images", np.dtype(image.dtype).name, _dims(image.shape))
        # What is never read is dropped.
        graph = ir.Graph(nodes, self._tensors, *head, output).between("images", output)
        kept = {node.name for node in graph.nodes}
        products = {name: p for name, p in self._products.items() if name in kept}
        return Lowered(graph, products, tuple(self._replaced))

    def node(self, step: Step, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node and returns its name."""
        name = self._name(ir.below(step.layer, op))
        self._nodes.append(ir.Node(name, op, tuple(inputs), attributes, step.layer))
        return name

    def operand(self, step: Step, x: Array, what: str = "") -> str:
        """Returns the name of an operand; one that is computed already becomes a tensor."""
        if x not in self.names:
            # A number of Python's has no dtype of its own.
            numbers = np.asarray(x.numbers, x.dtype)
            self.names[x] = self.tensor(step, self._tensor_name(step, x, what), numbers)
        return self.names[x]

    def _check(self, x: Array) -> None:
        if x in self._refused:
            raise self._refused[x]

    def operands(self, step: Step) -> list[str]:
        return [self.operand(step, x) for x in step.operands]

    def tensor(self, step: Step, name: str, numbers: Any) -> str:
        """Adds a tensor and returns its name."""
        name, tensor = self._name(name), np.asarray(numbers)
        if tensor.dtype.name != "bfloat16":
            self._tensors[name] = tensor
            return name
        # numpy has no such dtype of its own, and float32 holds each of these numbers.
        self._tensors[name] = tensor.astype(np.float32)
        return self.node(step, "cast", [name], dtype="bfloat16")

    def product(self, product: Product) -> None:
        self._products[product.node.name] = product

    @property
    def last(self) -> ir.Node:
        return self._nodes[-1]

    def _tensor_name(self, step: Step, x: Array, what: str) -> str:
        if x.shape == ():
            return f"constants/{np.asarray(x.numbers)}"
        return x.name or ir.below(step.layer, what or f"{step.name}_constant")

    def _name(self, wanted: str) -> str:
        name = ir.unused(wanted, self._taken)
        self._taken.add(name)
        return name


_BATCH_SIZE = "numbers that depend on the size of the batch cannot be packed"


def _refusal(step: Step, why: str) -> UserError:
    return UserError(f"{step.name}: {why} ({step.source})", where=step.layer or "the network")


def _refuse(out, step):
    del out
    raise _refusal(step, _why_not(step))


def _why_not(step: Step) -> str:
    if step.name in ("while", "cond"):
        kind = "loop whose length" if step.name == "while" else "choice (lax.cond) that"
        return f"a {kind} depends on the input cannot be packed"
    if step.name.startswith(("random", "threefry", "rng")):
        return "a random number cannot be packed; inference has none"
    if step.name == "dim_as_value":
        return _BATCH_SIZE
    if step.name == "scan":
        return "a loop over the images cannot be packed; jax.vmap in its place can"
    return "an operation that a packed graph does not have"


def _dim(n: Any) -> int:
    """Returns a dimension as `ir` has it: below 0, that many times the batch."""
    if isinstance(n, (int, np.integer)):
        return int(n)
    found = re.fullmatch(r"(?:(\d+)\*)?[A-Za-z_]\w*", str(n))
    if not found:
        raise UserError(
            f"the network: an array has {n} elements along an axis, no multiple of the batch"
        )
    return -int(found[1] or 1)


def _dims(shape: Sequence[Any]) -> tuple[int, ...]:
    return tuple(map(_dim, shape))


def _dtype(step: Step, wanted: Any = None) -> str:
    name = np.dtype(step.results[0].dtype if wanted is None else wanted).name
    if name not in ir.DTYPES:
        raise _refusal(step, f"arrays of {name} cannot be packed")
    return name


def _same(op: str):
    return lambda out, step: out.node(step, op, out.operands(step))


def _compare(direction: str):
    return lambda out, step: out.node(step, "compare", out.operands(step), direction=direction)


def _reshape(out, step):
    (x,) = out.operands(step)
    if step.name == "reshape" and step.params["dimensions"] is not None:
        x = _permuted(out, step, x, step.params["dimensions"])
    return out.node(step, "reshape", [x], shape=_dims(step.shapes[0]))


def _broadcast(out, step):
    axes = tuple(map(int, step.params["broadcast_dimensions"]))
    return out.node(step, "broadcast", out.operands(step)[:1], shape=_dims(step.shapes[0]), axes=axes)


def _iota(out, step):
    p, shape = step.params, step.shapes[0]
    length = _dim(shape[p["dimension"]])
    if length < 0:
        raise _refusal(step, _BATCH_SIZE)
    numbers = np.arange(length).astype(_dtype(step))
    name = out.tensor(step, ir.below(step.layer, "iota"), numbers)
    return out.node(step, "broadcast", [name], shape=_dims(shape), axes=(int(p["dimension"]),))


def _slice(out, step):
    p, rank = step.params, len(step.operands[0].shape)
    strides = tuple(map(int, p["strides"] or (1,) * rank))
    start, limit = _dims(p["start_indices"]), _dims(p["limit_indices"])
    return out.node(step, "slice", out.operands(step), start=start, limit=limit, strides=strides)


def _split(out, step):
    (x,), axis, start, parts = out.operands(step), step.params["axis"], 0, []
    shape = _dims(step.operands[0].shape)
    for size in map(int, step.params["sizes"]):
        first = tuple(start if i == axis else 0 for i in range(len(shape)))
        limit = tuple(start + size if i == axis else n for i, n in enumerate(shape))
        parts.append(out.node(step, "slice", [x], start=first, limit=limit, strides=(1,) * len(shape)))
        start += size
    return parts


def _unstack(out, step):
    cuts = dataclasses.replace(step, params={**step.params, "sizes": (1,) * len(step.shapes)})
    parts = zip(_split(out, cuts), step.shapes, strict=True)
    return [out.node(step, "reshape", [part], shape=_dims(shape)) for part, shape in parts]


def _moved(move: Callable[..., Any]):
    """Lowers an operation that puts elements of its first operand elsewhere: slices, and takes.

    Args:
      move: the operation itself on a batch of two images, given the operand, an array of numbers, the
        other operands, and the parameters. Where its elements come from is read off its result.
    """

    def emit(out, step):
        x, *others = step.operands
        if any(i.numbers is None for i in others):
            raise _refusal(step, "places that depend on the input cannot be packed")
        dims = _dims(x.shape)
        shape = ir.sized(dims, 2)
        positions = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
        positions = np.asarray(move(positions, *(np.asarray(i.numbers) for i in others), **step.params))
        places, order = _places(step, positions, shape)
        start, limit, strides = [0] * len(dims), list(dims), [1] * len(dims)
        after, takes = list(dims), []
        for axis, place in enumerate(places):
            if np.array_equal(place, np.arange(shape[axis])):
                continue
            if dims[axis] < 0:
                raise _refusal(step, "some images of a batch cannot be taken out of it")
            after[axis] = len(place)
            stride = int(place[1] - place[0]) if len(place) > 1 else 1
            if stride > 0 and (np.diff(place) == stride).all():
                start[axis], limit[axis], strides[axis] = int(place[0]), int(place[-1]) + 1, stride
            else:
                takes.append((axis, place))
        name = out.operand(step, x)
        if any(start) or limit != list(dims) or set(strides) != {1}:
            geometry = {"start": tuple(start), "limit": tuple(limit), "strides": tuple(strides)}
            name = out.node(step, "slice", [name], **geometry)
        for axis, place in takes:
            index = out.tensor(step, ir.below(step.layer, "places"), place)
            name = out.node(step, "take", [name, index], axis=axis)
        name, wanted = _permuted(out, step, name, order), _dims(step.shapes[0])
        if tuple(after[axis] for axis in order) == wanted:
            return name
        return out.node(step, "reshape", [name], shape=wanted)

    return emit


def _places(
    step: Step, positions: np.ndarray, shape: tuple[int, ...]
) -> tuple[list[np.ndarray], list[int]]:
    """Returns which places along each axis are taken, and in which order the axes come.

    Args:
      step: the operation.
      positions: for each element of its result, where it was in the flattened operand.
      shape: of the operand.
    """
    if not positions.size or not 0 <= positions.min() <= positions.max() < math.prod(shape):
        raise _refusal(step, "a place outside of its axis")
    places, becomes, before = [], [], -1
    for axis, n in enumerate(shape):
        coordinate = positions // math.prod(shape[axis + 1 :]) % n
        varies = [a for a in range(positions.ndim) if (np.diff(coordinate, axis=a) != 0).any()]
        if len(varies) > 1 or set(varies) & set(becomes):
            raise _refusal(step, "places that are no grid of some along each axis cannot be packed")
        one = tuple(slice(None) if a in varies else 0 for a in range(positions.ndim))
        places.append(np.atleast_1d(coordinate[one]))
        becomes.append(varies[0] if varies else before)
        before = becomes[-1]
    if math.prod(map(len, places)) != positions.size:
        raise _refusal(step, "places that are no grid of some along each axis cannot be packed")
    return places, sorted(range(len(shape)), key=lambda axis: becomes[axis])


def _gathered(x, places, slice_sizes, **params):
    sizes = ir.sized(_dims(slice_sizes), 2)
    return jax.lax.gather_p.bind(jnp.asarray(x), jnp.asarray(places), slice_sizes=sizes, **params)


def _cut(x, *starts, slice_sizes):
    return jax.lax.dynamic_slice(x, starts, ir.sized(_dims(slice_sizes), 2))


def _stack(out, step):
    axis, shape = int(step.params["axis"]), list(_dims(step.shapes[0]))
    shape[axis] = 1
    parts = [out.node(step, "reshape", [x], shape=tuple(shape)) for x in out.operands(step)]
    return out.node(step, "concatenate", parts, axis=axis)


def _clamp(out, step):
    low, x, high = out.operands(step)
    return out.node(step, "min", [out.node(step, "max", [low, x]), high])


def _square(out, step):
    (x,) = out.operands(step)
    return out.node(step, "mul", [x, x])


def _select(out, step):
    if len(step.operands) != 3 or step.operands[0].dtype != np.bool_:
        raise _refusal(step, "only of two cases")
    return out.node(step, "select", out.operands(step))


def _pad(out, step):
    edges = tuple(tuple(map(int, edge)) for edge in step.params["padding_config"])
    return out.node(step, "pad", out.operands(step), edges=edges)


def _is_finite(out, step):
    (x,) = step.operands
    infinity = out.tensor(step, "constants/inf", np.asarray(np.inf, x.dtype))
    size = out.node(step, "abs", [out.operand(step, x)])
    return out.node(step, "compare", [size, infinity], direction="lt")


def _round(out, step):
    if step.params["rounding_method"] != jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        raise _refusal(step, "only to the nearest, halves to even")
    return out.node(step, "round", out.operands(step))


def _reduce(op: str):
    return lambda out, step: out.node(
        step, op, out.operands(step), axes=tuple(map(int, step.params["axes"]))
    )


def _of_negative(emit: Callable[..., str], back: bool = True):
    """Finds the least as the largest of the negative, and takes that back."""

    def least(out, step):
        (x,) = step.operands
        if not np.issubdtype(x.dtype, np.floating):
            raise _refusal(step, f"of {np.dtype(x.dtype).name} cannot be packed; of float32 it can")
        negative = dataclasses.replace(x)
        out.names[negative] = out.node(step, "neg", [out.operand(step, x)])
        found = emit(out, dataclasses.replace(step, operands=[negative]))
        return out.node(step, "neg", [found]) if back else found

    return least


def _argmax(out, step):
    (axis,) = step.params["axes"]
    found = out.node(step, "argmax", out.operands(step), axis=int(axis))
    dtype = _dtype(step, step.params["index_dtype"])
    return found if dtype == "int32" else out.node(step, "cast", [found], dtype=dtype)


def _window(op: str):
    def emit(out, step):
        p = step.params
        if set(p["base_dilation"]) | set(p["window_dilation"]) != {1}:
            raise _refusal(step, "one with dilation cannot be packed")
        geometry = [tuple(map(int, p[k])) for k in ("window_dimensions", "window_strides")]
        padding = tuple(tuple(map(int, edge)) for edge in p["padding"])
        window, strides = geometry
        return out.node(step, op, out.operands(step), window=window, strides=strides, padding=padding)

    return emit


def _permuted(out, step, name: str, permutation: Sequence[int]) -> str:
    permutation = tuple(map(int, permutation))
    if permutation == tuple(range(len(permutation))):
        return name
    return out.node(step, "transpose", [name], permutation=permutation)


def _kernel(out, step, x: Array, permutation: Sequence[int]) -> str:
    """Returns a second operand in another order of axes: a tensor in that order, or by a node."""
    # An order that changes nothing shares its tensor with other readers.
    if x.numbers is None or tuple(permutation) == tuple(range(len(x.shape))):
        return _permuted(out, step, out.operand(step, x, "kernel"), permutation)
    changed = np.ascontiguousarray(np.asarray(x.numbers).transpose(permutation))
    return out.tensor(step, x.name or ir.below(step.layer, "kernel"), changed)


def _conv(out, step, number=None):
    p, (x, kernel) = step.params, step.operands
    d = p["dimension_numbers"]
    if p["batch_group_count"] != 1:
        raise _refusal(step, "groups of the batch cannot be packed")
    if len(x.shape) > 5:
        raise _refusal(step, f"one of {len(x.shape) - 2} dimensions cannot be packed")
    of_x = (d.lhs_spec[0], *d.lhs_spec[2:], d.lhs_spec[1])
    of_kernel = (*d.rhs_spec[2:], d.rhs_spec[1], d.rhs_spec[0])
    from_result = (d.out_spec[0], *d.out_spec[2:], d.out_spec[1])
    to_result = np.argsort(from_result)
    name_x = _permuted(out, step, out.operand(step, x), of_x)
    name_kernel = _kernel(out, step, kernel, of_kernel)
    node = out.node(
        step,
        "conv",
        [name_x, name_kernel],
        strides=tuple(map(int, p["window_strides"])),
        padding=tuple(tuple(map(int, edge)) for edge in p["padding"]),
        input_dilation=tuple(map(int, p["lhs_dilation"])),
        dilation=tuple(map(int, p["rhs_dilation"])),
        groups=int(p["feature_group_count"]),
        dtype=_dtype(step),
    )
    if number is not None:
        fixed = None if kernel.numbers is None else np.asarray(kernel.numbers).transpose(of_kernel)
        out.product(
            Product(
                *(number, out.last, x.value),
                *(_dims([x.shape[i] for i in of_x]), fixed, step.source),
                lambda x, k: (x.transpose(of_x), k.transpose(of_kernel)),
                lambda y: y.transpose(from_result),
            )
        )
    return _permuted(out, step, node, to_result)


def _dot(out, step, number=None):
    x, y = step.operands
    contracting, batch = step.params["dimension_numbers"]
    contracting, batch = (tuple(tuple(map(int, a)) for a in pair) for pair in (contracting, batch))
    # The operand that is the same for every input comes second.
    swapped = x.numbers is not None and y.value.from_input
    if swapped:
        x, y, contracting, batch = y, x, contracting[::-1], batch[::-1]
    name = out.node(
        *(step, "dot", [out.operand(step, x), out.operand(step, y, "kernel")]),
        contracting=contracting,
        batch=batch,
        dtype=_dtype(step),
    )
    free = [len(a.shape) - len(contracting[0]) - len(batch[0]) for a in (x, y)]
    order = list(range(len(batch[0]) + sum(free)))
    if swapped:
        # The program's order is the batch, the second operand, the first.
        first = len(batch[0])
        order = [*order[:first], *order[first + free[0] :], *order[first : first + free[0]]]
    if number is not None:
        back = tuple(np.argsort(order).tolist())
        out.product(
            Product(
                *(number, out.last, x.value, _dims(x.shape)),
                *(None if y.numbers is None else np.asarray(y.numbers), step.source),
                lambda x, y: (y, x) if swapped else (x, y),
                lambda z: z.transpose(back),
            )
        )
    return _permuted(out, step, name, order)


_SAME = words(
    "neg abs sign floor ceil exp expm1 log log1p tanh logistic erf erfc sqrt rsqrt not "
    "add sub mul div pow max min"
)
_EMIT: dict[str, Callable[..., Any]] = {
    **{name: _same(name) for name in _SAME},
    **{name: _compare(name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{name: _reshape for name in ("reshape", "squeeze", "expand_dims")},
    "add_any": _same("add"),
    "and": _same("and"),
    "or": _same("or"),
    "square": _square,
    "clamp": _clamp,
    "is_finite": _is_finite,
    "round": _round,
    "select_n": _select,
    "integer_pow": lambda out, step: out.node(
        step, "integer_pow", out.operands(step), y=int(step.params["y"])
    ),
    "convert_element_type": lambda out, step: out.node(
        step, "cast", out.operands(step), dtype=_dtype(step)
    ),
    "broadcast_in_dim": _broadcast,
    "iota": _iota,
    "transpose": lambda out, step: out.node(
        step, "transpose", out.operands(step), permutation=tuple(map(int, step.params["permutation"]))
    ),
    "slice": _slice,
    "split": _split,
    "unstack": _unstack,
    "dynamic_slice": _moved(_cut),
    "gather": _moved(_gathered),
    "rev": _moved(lambda x, dimensions: np.flip(x, dimensions)),
    "tile": _moved(lambda x, reps: np.tile(x, reps)),
    "stack": _stack,
    "pad": _pad,
    "concatenate": lambda out, step: out.node(
        step, "concatenate", out.operands(step), axis=int(step.params["dimension"])
    ),
    "reduce_sum": _reduce("reduce_sum"),
    "reduce_max": _reduce("reduce_max"),
    "reduce_min": _of_negative(_reduce("reduce_max")),
    "argmax": _argmax,
    "argmin": _of_negative(_argmax, back=False),
    "reduce_window_sum": _window("window_sum"),
    "reduce_window_max": _window("window_max"),
    "reduce_window_min": _of_negative(_window("window_max")),
    "conv_general_dilated": _conv,
    "dot_general": _dot,
}
