"""The graph: a network as a list of operations out of one closed table.

`lower` makes a graph of any traced program, `passes` put binary products in the place of products of
signs, and every target (the packed runtime, ONNX, the file) is a table or a loop over this one.

An array is an input, a tensor, or the result of the node of its name. Images come first in every shape
that depends on them: a dimension below 0 is that many times the batch, so `(-1, 7, 7, 64)` holds one
image's features a row, and `-49` is 49 positions of each image.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ftbnn_jax import fields
from ftbnn_jax.errors import UserError, summary
from ftbnn_jax.ops.conv import convolution
from ftbnn_jax.ops.packed import bits as bitpack
from ftbnn_jax.ops.packed import convolution as packed

# Dtypes of arrays; bits are words of 32.
DTYPES = (
    *("float32", "bfloat16", "float16", "bool"),
    *("int8", "int16", "int32", "uint8", "uint16", "uint32"),
)
BATCH = -1
# Larger numbers, longer lists and names, more axes and more nodes than any network needs.
_MOST = 2**31 - 1
_LONGEST = 2**16
_LONGEST_NAME = 1000
_MOST_AXES = 16
_MOST_NODES = 2**14
# Elements of one array for one image, and of all that is made of a file before it sees an image.
_MOST_ELEMENTS = 2**28
_MOST_PREPARED = 2**27


class Node(NamedTuple):
    """One operation.

    Attributes:
      name: of its result.
      op: one of `OPERATIONS`.
      inputs: names of its operands.
      attributes: by name; what the operation's rule takes.
      layer: path of the module it belongs to.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    attributes: dict[str, Any]
    layer: str


@dataclasses.dataclass(frozen=True)
class Graph:
    """A network.

    Attributes:
      nodes: in the order in which they can be computed.
      tensors: its constants by name.
      input: what the images are called.
      dtype: of the images.
      shape: of the images, the batch first: `(-1, H, W, C)`.
      output: name of the result.
    """

    nodes: tuple[Node, ...]
    tensors: Mapping[str, np.ndarray]
    input: str
    dtype: str
    shape: tuple[int, ...]
    output: str

    def to_json(self) -> dict[str, Any]:
        """Returns all of it but the tensors' numbers as values that JSON can hold.

        Operands are numbers: 0 is the input, then come the tensors in the order of their names, then
        the nodes. What many nodes share is short that way.
        """
        names = [self.input, *sorted(self.tensors), *(node.name for node in self.nodes)]
        number = {name: i for i, name in enumerate(names)}
        nodes = [
            [n.name, n.op, [number[i] for i in n.inputs], n.attributes, n.layer] for n in self.nodes
        ]
        head = {"name": self.input, "dtype": self.dtype, "shape": list(self.shape)}
        return {"input": head, "nodes": nodes, "output": number[self.output]}

    @classmethod
    def from_json(cls, value: Any, tensors: Mapping[str, np.ndarray]) -> "Graph":
        """Builds a graph from `to_json`'s result and its tensors, and checks all of it.

        Raises:
          UserError: an operation, an operand or an attribute is none that there can be, shapes do not
            go together, or what runs it would take more memory than any network needs.
        """
        value = _object(value, "graph", ("input", "nodes", "output"))
        head = _object(value["input"], "graph.input", ("name", "dtype", "shape"))
        name = _text(head["name"], "graph.input.name")
        _dtype(head["dtype"], "graph.input.dtype")
        shape = _dims(head["shape"], "graph.input.shape")
        right = shape[:1] == (BATCH,) and all(n > 0 for n in shape[1:])
        _require(right, "graph.input.shape", "the batch, -1, and sizes", head["shape"])
        names = [name, *(_text(n, "tensors") for n in sorted(tensors))]
        _require(
            isinstance(value["nodes"], list) and 0 < len(value["nodes"]) <= _MOST_NODES,
            *("graph.nodes", f"a list of 1 to {_MOST_NODES:,}", value["nodes"]),
        )
        nodes = []
        for i, item in enumerate(value["nodes"]):
            nodes.append(_node(item, f"graph.nodes[{i}]", names))
            names.append(nodes[-1].name)
        (twice, count), *_ = collections.Counter(names).most_common(1)
        _require(count == 1, "graph.nodes", "names that differ", twice)
        output = _number(value["output"], "graph.output", 1 + len(tensors), len(names) - 1)
        graph = cls(tuple(nodes), dict(tensors), name, head["dtype"], shape, names[output])
        graph._check_words()
        # Two numbers of images, the second one of which stands in no graph by chance.
        shapes = {batch: graph.shapes(batch) for batch in (1, 61)}
        for batch, found in shapes.items():
            first = found[graph.output].shape[:1]
            _require(first == (batch,), "graph.output", f"[{batch}, ...] for a batch of {batch}", first)
        graph._check_memory(shapes[1])
        return graph

    def _check_words(self) -> None:
        """Raises a UserError unless every binary product has a tensor of words of its own."""
        readers = collections.Counter(name for node in self.nodes for name in node.inputs)
        for node in self.binary_products():
            words = node.inputs[1]
            if words not in self.tensors or readers[words] > 1:
                what = "is read by another node too" if words in self.tensors else "is no tensor"
                raise UserError(f"{fields.shown(node.name)}: its kernel {fields.shown(words)} {what}")

    def _check_memory(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        """Raises a UserError where what is computed before any image would take too much memory."""
        elements = sum(math.prod(shapes[node.name].shape) for node in self._constant_nodes())
        for node in self.binary_products():
            # A table says for each window which of its positions lie on the padding.
            taps = math.prod(node.attributes.get("kernel_size", ()))
            elements += math.prod(shapes[node.name].shape[1:-1]) * taps
        if elements > _MOST_PREPARED:
            raise UserError(
                f"metadata graph: {elements:,} numbers before any image, more than a network needs"
            )

    def shapes(self, batch: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shape and dtype of the images and of every node's result for a batch, by name.

        Raises:
          UserError: operands do not go together.
        """
        return self._shapes_of_one if batch == 1 else self._shapes(batch)

    @functools.cached_property
    def _shapes_of_one(self) -> dict[str, jax.ShapeDtypeStruct]:
        return self._shapes(1)

    def _shapes(self, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
        found: dict[str, jax.ShapeDtypeStruct] = {}

        def note(name, x):
            if math.prod(x.shape) > _MOST_ELEMENTS * batch:
                size = fields.shown(list(x.shape))
                raise UserError(f"{fields.shown(name)}: {size} is more than any network needs")
            found[name] = jax.ShapeDtypeStruct(x.shape, x.dtype)
            return x

        image = jax.ShapeDtypeStruct(sized(self.shape, batch), self.dtype)
        constants = {n: jax.ShapeDtypeStruct(t.shape, t.dtype) for n, t in self.tensors.items()}
        jax.eval_shape(lambda x, c: self.run(x, c, note=note), image, constants)
        return found

    def run(
        self,
        images: jax.Array,
        tensors: Mapping[str, Any],
        note: Callable[[str, Any], Any] = lambda name, x: x,
        batch: int | None = None,
    ) -> jax.Array:
        """Computes the network.

        Args:
          images: of `dtype` and `shape`.
          tensors: by name; of a binary product the words of its kernels, or what `prepare` made of them.
            An array that is there already is not computed.
          note: is shown every array, by name, and returns what takes its place.
          batch: how many images there are, where `images` does not say it.

        Raises:
          UserError: operands do not go together.
        """
        arrays = {**tensors, self.input: note(self.input, images)}
        batch = images.shape[0] if batch is None else batch
        for node in self.nodes:
            if node.name not in arrays:
                try:
                    result = apply(node, batch, [arrays[name] for name in node.inputs])
                # JAX's rules raise all kinds where a file asks for what cannot be.
                except Exception as error:
                    name = fields.shown(node.name)
                    raise UserError(f"{name} ({node.op}): {summary(error)}") from error
                arrays[node.name] = note(node.name, result)
        return arrays[self.output]

    def between(self, source: str, result: str) -> "Graph":
        """Returns the graph that computes one array from another one, its only input.

        It holds the nodes and the tensors that are read for that, and no others.
        """
        live, kept = {result}, []
        for node in reversed(self.nodes):
            if node.name in live and node.name != source:
                live.update(node.inputs)
                kept.append(node)
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in live}
        nodes = tuple(kept[::-1])
        return dataclasses.replace(self, nodes=nodes, tensors=tensors, input=source, output=result)

    def constants(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what can be computed without an image, by name, and the tensors that it is made of."""
        known = dict(tensors)
        for node in self._constant_nodes():
            known[node.name] = apply(node, 1, [known[name] for name in node.inputs])
        return known

    def _constant_nodes(self) -> list[Node]:
        """Returns the nodes whose results are the same for all images and numbers of them."""
        words = {node.inputs[1] for node in self.binary_products()}
        known, found = self.tensors.keys() - words, []
        for node in self.nodes:
            if known.issuperset(node.inputs) and not _is_sized(node):
                known.add(node.name)
                found.append(node)
        return found

    def binary_products(self) -> list[Node]:
        """Returns the nodes that count bits, in order."""
        return [node for node in self.nodes if node.op in BINARY]


def apply(node: Node, batch: int, operands: Sequence[Any]) -> jax.Array:
    """Computes one node for `batch` images."""
    operation = OPERATIONS[node.op]
    attributes = {
        name: sized(value, batch) if operation.attributes[name] is _dims else value
        for name, value in node.attributes.items()
    }
    return operation.rule(*operands, **attributes)


def _is_sized(node: Node) -> bool:
    """Whether a node's result has a size that depends on the batch's."""
    checks = OPERATIONS[node.op].attributes
    return any(n < 0 for name, check in checks.items() if check is _dims for n in node.attributes[name])


def below(layer: str, name: str) -> str:
    """Returns the path of what has a name in a layer; the outermost layer's is ""."""
    return f"{layer}/{name}" if layer else name


def unused(wanted: str, taken: Container[str]) -> str:
    """Returns a name that is not taken: the wanted one, or that with a number behind it."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name


def sized(shape: Sequence[int], batch: int) -> tuple[int, ...]:
    """Returns a shape for a batch of that many images."""
    return tuple(n if n >= 0 else -n * batch for n in shape)


# Binary products.


def packed_conv(attributes: Mapping[str, Any]) -> packed.PackedConv:
    """Returns the binary convolution of a node: 1x1 for rows, and along a line of a height of 1."""
    a = attributes
    missing = 2 - len(a.get("kernel_size", ()))
    geometry = {
        name: (one,) * missing + a.get(name, ())
        for name, one in (("kernel_size", 1), ("strides", 1), ("padding", (0, 0)), ("dilation", 1))
    }
    return packed.PackedConv(a["in_features"], a["out_features"], a["form"], **geometry)


def kernel_shapes(attributes: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Returns `(KH, KW, I_g, O_g)` for each group of a binary product."""
    size = packed_conv(attributes).kernel_size
    groups = zip(attributes["in_features"], attributes["out_features"], strict=True)
    return [(*size, i, o) for i, o in groups]


def kernel_bits(attributes: Mapping[str, Any]) -> int:
    """Returns the number of weights of a binary product."""
    return sum(map(math.prod, kernel_shapes(attributes)))


def pack(kernels: Sequence[np.ndarray]) -> np.ndarray:
    """Packs booleans `[KH, KW, I_g, O_g]`, True for +1, one a group, into words without a gap."""
    return bitpack.pack_stream(np.concatenate([kernel.reshape(-1) for kernel in kernels]))


def unpack(attributes: Mapping[str, Any], words: np.ndarray) -> list[np.ndarray]:
    """Returns the kernels that `pack` packed."""
    shapes = kernel_shapes(attributes)
    sizes = [math.prod(shape) for shape in shapes]
    found = np.split(bitpack.unpack_stream(words, sum(sizes)), np.cumsum(sizes)[:-1])
    return [b.reshape(shape) for b, shape in zip(found, shapes, strict=True)]


def prepare(node: Node, words: np.ndarray, shape: Sequence[int]) -> packed.Weights:
    """Returns the kernels of a binary product in the form that it reads, for inputs of one shape."""
    height, width = _plane(node.attributes, shape)
    return packed_conv(node.attributes).prepare(unpack(node.attributes, words), height, width)


def _plane(attributes: Mapping[str, Any], shape: Sequence[int]) -> tuple[int, int]:
    dims = len(attributes.get("kernel_size", ()))
    return (*((1,) * (2 - dims)), *shape[1 : 1 + dims])


def _binary(x, weights, dtype, **attributes):
    """Integers of a binary product of signs `[N, (H,) (W,) I]`, or of rows `[..., I]`."""
    conv = packed_conv(attributes)
    dims = len(attributes.get("kernel_size", ()))
    if "kernel_size" in attributes:
        _check_axes(x, {name: attributes[name] for name in ("kernel_size", *_GEOMETRY)}, range(1, 3))
    elif x.ndim < 2:
        raise TypeError(f"{x.ndim} dimensions")
    if 0 in x.shape:
        raise TypeError("no activations")
    if x.shape[-1] != sum(attributes["in_features"]):
        raise TypeError(f"{x.shape[-1]} channels for {sum(attributes['in_features'])}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.float32)
    planes = x.reshape(-1, 1, 1, x.shape[-1]) if not dims else x
    planes = planes[:, None] if dims == 1 else planes
    if isinstance(weights, list):
        sums = conv(weights, planes)
    else:
        # Words alone have no size to be prepared for: this is the shape of the result.
        count = kernel_bits(attributes)
        if weights.dtype != jnp.uint32 or weights.shape != (bitpack.words_for(count),):
            raise TypeError(f"{list(weights.shape)} words for {count:,} bits")
        shape = (planes.shape[0], *conv.output_shape(*planes.shape[1:3]), sum(conv.out_features))
        sums = jnp.zeros(shape, jnp.int32)
    outer = x.shape[:-1] if not dims else (*sums.shape[:1], *sums.shape[3 - dims : 3])
    return sums.reshape(*outer, sums.shape[-1]).astype(dtype)


def _check_axes(x: Any, geometry: Mapping[str, Any], allowed: range) -> None:
    """Raises a TypeError unless each attribute has an entry an axis between images and channels."""
    if x.ndim - 2 not in allowed:
        raise TypeError(f"{x.ndim} dimensions; {allowed[0] + 2} to {allowed[-1] + 2} can be convolved")
    for name, values in geometry.items():
        if len(values) != x.ndim - 2 or (name == "padding" and set(map(len, values)) - {2}):
            raise TypeError(f"{name} {list(values)} for {x.ndim - 2} axes")


# Real operations.


def _elementwise(function):
    def rule(*operands):
        if len({x.dtype for x in operands[-2:]}) > 1:
            raise TypeError(f"operands of {' and '.join(str(x.dtype) for x in operands)}")
        shape = jnp.broadcast_shapes(*(x.shape for x in operands))
        # Scalars and operands of one rank are what the operations take themselves.
        ranks = {x.ndim for x in operands if x.ndim}
        if len(ranks) > 1:
            operands = [jnp.broadcast_to(x, shape) for x in operands]
        return function(*operands)

    return rule


def _conv(x, kernel, strides, padding, input_dilation, dilation, groups, dtype):
    geometry = {"strides": strides, "padding": padding, "dilation": dilation}
    _check_axes(x, {**geometry, "input_dilation": input_dilation}, range(4))
    plain = x.ndim == 4 and groups == 1 and set(input_dilation + dilation) == {1}
    if plain and len(set(strides)) == 1 and x.dtype == kernel.dtype == jnp.float32 == dtype:
        # The algorithm that suits the machine and the shape.
        return convolution.forward(x, kernel, strides[0], padding, dtype)
    space = "DHW"[3 - len(strides) :]
    return lax.conv_general_dilated(
        *(x, kernel, strides, padding, input_dilation, dilation),
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=groups,
        preferred_element_type=dtype,
    )


def _reshape(x, shape):
    # JAX leaves it to the compiler to notice, since sizes may be symbols.
    if math.prod(x.shape) != math.prod(shape):
        raise TypeError(f"{list(x.shape)} as {list(shape)}")
    return lax.reshape(x, shape)


def _dot(x, y, contracting, batch, dtype):
    return lax.dot_general(x, y, (contracting, batch), preferred_element_type=dtype)


def _window(x, window, strides, padding, init, function):
    return lax.reduce_window(x, jnp.asarray(init, x.dtype), function, window, strides, padding)


def _lowest(dtype):
    if jnp.issubdtype(dtype, jnp.floating):
        return -jnp.inf
    return False if dtype == jnp.bool_ else jnp.iinfo(dtype).min


_COMPARE = {"eq": lax.eq, "ne": lax.ne, "lt": lax.lt, "le": lax.le, "gt": lax.gt, "ge": lax.ge}


# What attributes may be: each returns the value, of lists as tuples.


def _require(right: bool, where: str, what: str, found: Any) -> None:
    if not right:
        raise UserError(f"metadata {where}: {what} expected, found {fields.shown(found)}")


def _object(value: Any, where: str, names: Sequence[str]) -> dict[str, Any]:
    right = isinstance(value, dict) and sorted(value) == sorted(names)
    _require(right, where, f"an object of {', '.join(names)}", value)
    return value


def _text(value: Any, where: str) -> str:
    right = isinstance(value, str) and len(value) <= _LONGEST_NAME and value.isprintable()
    _require(right, where, f"a name of at most {_LONGEST_NAME:,} characters", value)
    return value


def _number(value: Any, where: str, least: int = 0, most: int = _MOST) -> int:
    right = type(value) is int and least <= value <= most
    _require(right, where, f"a number from {least:,} to {most:,}", value)
    return value


def _numbers(value: Any, where: str, least: int = 0, longest: int = _MOST_AXES) -> tuple[int, ...]:
    right = isinstance(value, (list, tuple)) and len(value) <= longest
    _require(right, where, f"a list of at most {longest:,}", value)
    return tuple(_number(n, where, least) for n in value)


def _positive(value: Any, where: str) -> tuple[int, ...]:
    return _numbers(value, where, 1)


def _sizes(value: Any, where: str) -> tuple[int, ...]:
    return _numbers(value, where, 1, _LONGEST)


def _dims(value: Any, where: str) -> tuple[int, ...]:
    return _numbers(value, where, -_MOST)


def _pairs(value: Any, where: str) -> tuple[tuple[int, ...], ...]:
    right = isinstance(value, (list, tuple)) and len(value) <= _MOST_AXES
    _require(right, where, f"a list of at most {_MOST_AXES}", value)
    return tuple(_numbers(pair, where, -_MOST) for pair in value)


def _dtype(value: Any, where: str) -> str:
    _require(value in DTYPES if isinstance(value, str) else False, where, f"one of {DTYPES}", value)
    return value


def _one_of(*names: str) -> Callable[[Any, str], str]:
    def check(value, where):
        _require(isinstance(value, str) and value in names, where, f"one of {names}", value)
        return value

    return check


class Operation(NamedTuple):
    """An entry of the table.

    Attributes:
      operands: how many it takes; 0 for one or more.
      rule: computes it with JAX.
      attributes: what each may be.
    """

    operands: int
    rule: Callable[..., jax.Array]
    attributes: Mapping[str, Callable[[Any, str], Any]] = {}


_UNARY = {
    **{"neg": lax.neg, "abs": lax.abs, "sign": lax.sign, "floor": lax.floor, "ceil": lax.ceil},
    **{"exp": lax.exp, "log": lax.log, "tanh": lax.tanh, "logistic": lax.logistic, "erf": lax.erf},
    **{"sqrt": lax.sqrt, "rsqrt": lax.rsqrt, "not": lax.bitwise_not},
    **{"expm1": lax.expm1, "log1p": lax.log1p, "erfc": lax.erfc},
    "round": lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN),
}
_BINARY = {
    **{"add": lax.add, "sub": lax.sub, "mul": lax.mul, "div": lax.div, "pow": lax.pow},
    **{"max": lax.max, "min": lax.min, "and": lax.bitwise_and, "or": lax.bitwise_or},
}
_GEOMETRY = {"strides": _positive, "padding": _pairs, "dilation": _positive}
_GROUPS = {
    "form": _one_of(*packed.FORMS),
    "in_features": _sizes,
    "out_features": _sizes,
    "dtype": _dtype,
}
BINARY = ("binary_conv", "binary_dot")

OPERATIONS: dict[str, Operation] = {
    **{name: Operation(1, _elementwise(function)) for name, function in _UNARY.items()},
    **{name: Operation(2, _elementwise(function)) for name, function in _BINARY.items()},
    "compare": Operation(
        2,
        lambda x, y, direction: _elementwise(_COMPARE[direction])(x, y),
        {"direction": _one_of(*_COMPARE)},
    ),
    # The second operand where the first is False, the third where it is True.
    "select": Operation(3, lambda p, x, y: lax.select_n(*_select_operands(p, x, y))),
    "cast": Operation(1, lambda x, dtype: x.astype(dtype), {"dtype": _dtype}),
    "integer_pow": Operation(
        1, lambda x, y: lax.integer_pow(x, y), {"y": lambda v, where: _number(v, where, -64, 64)}
    ),
    "reshape": Operation(1, _reshape, {"shape": _dims}),
    "transpose": Operation(1, lax.transpose, {"permutation": _numbers}),
    # `axes`: which axis of the result each axis of the operand becomes.
    "broadcast": Operation(
        1,
        lambda x, shape, axes: lax.broadcast_in_dim(x, shape, axes),
        {"shape": _dims, "axes": _numbers},
    ),
    "slice": Operation(
        1,
        lambda x, start, limit, strides: lax.slice(x, start, limit, strides),
        {"start": _dims, "limit": _dims, "strides": _positive},
    ),
    # Places along one axis, the second operand, int32 `[n]`.
    "take": Operation(2, lambda x, i, axis: jnp.take(x, i, axis, mode="clip"), {"axis": _number}),
    "concatenate": Operation(0, lambda *x, axis: lax.concatenate(x, axis), {"axis": _number}),
    # Low, high and between, of each axis; the second operand is what is put there.
    "pad": Operation(2, lambda x, v, edges: lax.pad(x, v, edges), {"edges": _pairs}),
    "reduce_sum": Operation(1, lambda x, axes: lax.reduce_sum(x, axes), {"axes": _numbers}),
    "reduce_max": Operation(1, lambda x, axes: lax.reduce_max(x, axes), {"axes": _numbers}),
    "argmax": Operation(1, lambda x, axis: lax.argmax(x, axis, jnp.int32), {"axis": _number}),
    "window_sum": Operation(
        1,
        lambda x, **a: _window(x, **a, init=0, function=lax.add),
        {"window": _positive, "strides": _positive, "padding": _pairs},
    ),
    "window_max": Operation(
        1,
        lambda x, **a: _window(x, **a, init=_lowest(x.dtype), function=lax.max),
        {"window": _positive, "strides": _positive, "padding": _pairs},
    ),
    # Positions between the batch, first, and the channels, last; kernels [..., I / groups, O].
    "conv": Operation(
        2,
        _conv,
        {**_GEOMETRY, "input_dilation": _positive, "groups": _number, "dtype": _dtype},
    ),
    # Axes of the first and of the second operand.
    "dot": Operation(2, _dot, {"contracting": _pairs, "batch": _pairs, "dtype": _dtype}),
    # Operands are signs and the words of kernels, group after group: [row, column, input, output].
    "binary_conv": Operation(2, _binary, {**_GROUPS, **_GEOMETRY, "kernel_size": _positive}),
    "binary_dot": Operation(2, _binary, _GROUPS),
}


def _select_operands(which, x, y):
    shape = jnp.broadcast_shapes(which.shape, x.shape, y.shape)
    return [jnp.broadcast_to(a, shape) for a in (which, x, y)]


def _node(item: Any, where: str, names: Sequence[str]) -> Node:
    right = isinstance(item, list) and len(item) == 5 and isinstance(item[3], dict)
    _require(right, where, "[name, operation, operands, attributes, layer]", item)
    name, op, inputs, attributes, layer = item
    operation = OPERATIONS.get(op) if isinstance(op, str) else None
    _require(operation is not None, f"{where}.op", f"one of the {len(OPERATIONS)} operations", op)
    inputs = _numbers(inputs, f"{where}.inputs", longest=_LONGEST)
    count = operation.operands or max(1, len(inputs))
    _require(len(inputs) == count, f"{where}.inputs", f"{count} operands", inputs)
    for i in inputs:
        _number(i, f"{where}.inputs", 0, len(names) - 1)
    _object(attributes, f"{where}.attributes", tuple(operation.attributes))
    checked = {n: check(attributes[n], f"{where}.{n}") for n, check in operation.attributes.items()}
    return Node(
        _text(name, f"{where}.name"),
        op,
        tuple(names[i] for i in inputs),
        checked,
        _text(layer, f"{where}.layer"),
    )
