"""A graph as an ONNX model: a table from operation to ONNX nodes. Needs the extra `onnx`.

The signs are what the graph computes. A binary product of them gives exact integers in both forms:

    float32    Conv, MatMul
    int8       Cast, ConvInteger, MatMulInteger: signs and weights in 8 bits, int32 sums

In the first one, onnxruntime may multiply a factor that follows into the weights, and rounds then.

All else is computed as the graph says, in its dtypes; what onnxruntime has for few dtypes only is
computed in a wider one (`_WIDE`) and brought back. Sums round in another order than JAX's. Subnormal
numbers are numbers, which JAX takes for 0 on a CPU. Maxima may lose a NaN.
"""

import functools
import itertools
import json
import math
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ftbnn_jax import extras, report
from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy import schema
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir
from ftbnn_jax.host import paths
from ftbnn_jax.ops.packed import convolution as packed

with extras.named():
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

FORMS = ("float32", "int8")

# Both old enough for any runtime in use.
_OPSET = 18
_IR_VERSION = 8

# Where a dtype is computed that the operations of onnxruntime do not have.
_WIDE = {
    **dict.fromkeys(("bool", "int8", "int16", "int32", "uint8", "uint16"), "int32"),
    **dict.fromkeys(("float16", "bfloat16", "float32"), "float32"),
}
_END = np.iinfo(np.int64).max


def network(graph: ir.Graph, form: str) -> onnx.ModelProto:
    """Returns a graph as a model.

    Args:
      graph: what to build.
      form: one of `FORMS`.

    Returns:
      A model of the graph's input, for any batch, and its output. Every array of the graph has its name
      in the model, and its shape but for axes along which it would only repeat.

    Raises:
      UserError: ONNX has no such thing; the line names the layer.
    """
    model = _Model(graph, form)
    for node in graph.nodes:
        model.emit(node)
    return model.finish()


def export(artifact: artifact_lib.Artifact) -> onnx.ModelProto:
    """Returns the model of an artifact, in the form int8, that says what the artifact's file says.

    The model's `metadata_props` are `preprocessing`, `class_names`, `step` and `versions`, each as JSON.

    Raises:
      UserError: as `network`.
    """
    model = network(artifact.graph, "int8")
    said = ("preprocessing", "class_names", "step", "versions")
    plain = {name: json.dumps(schema.plain(getattr(artifact, name))) for name in said}
    helper.set_model_props(model, plain)
    return model


def run(path: str, artifact_path: str, as_json: bool = False) -> int:
    """Writes the model of the artifact at `artifact_path`, prints its size, and returns the status.

    Args:
      path: of the model.
      artifact_path: of the artifact.
      as_json: prints a line of JSON instead of a table.

    Raises:
      UserError: the artifact is missing or damaged, ONNX has not all that it takes, or the file cannot
        be written.
    """
    content = export(artifact_lib.load(artifact_path)).SerializeToString()
    try:
        paths.write_whole(path, content)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", path) from error
    if as_json:
        report.print_json({"file": path, "bytes": len(content), "opset": _OPSET})
        return 0
    opset = f"operations of opset {_OPSET}, signs in 8 bits"
    report.print_table(
        "Exported to ONNX", [("file", path), ("file size", f"{len(content):,} bytes"), ("needs", opset)]
    )
    return 0


def layer(
    conv: packed.PackedConv, kernels: Sequence[np.ndarray], form: str, height: int, width: int
) -> onnx.ModelProto:
    """Returns one binary convolution, with the signs of its activations.

    Args:
      conv: its geometry; in the form "xnor" what is no positive number counts as -1.
      kernels: booleans `[KH, KW, I_g, O_g]`, one array a group, True for a weight of +1.
      form: one of `FORMS`.
      height: of the activations.
      width: of the activations.

    Returns:
      A model from float32 activations `[N, I, H, W]`, for any N, to integers `[N, O, H', W']`: float32,
      or int32 in the form int8.
    """
    nodes = [ir.Node("rows", "transpose", ("x",), {"permutation": (0, 2, 3, 1)}, "")]
    if conv.form == "xnor":
        nodes += [
            ir.Node("positive", "compare", ("rows", "zero"), {"direction": "gt"}, ""),
            ir.Node("signs", "select", ("positive", "minus", "plus"), {}, ""),
        ]
    else:
        nodes.append(ir.Node("signs", "sign", ("rows",), {}, ""))
    names = ("in_features", "out_features", "form", "kernel_size", "strides", "padding", "dilation")
    attributes = {name: getattr(conv, name) for name in names}
    attributes["dtype"] = "int32" if form == "int8" else "float32"
    nodes += [
        ir.Node("sums", "binary_conv", ("signs", "bits"), attributes, ""),
        ir.Node("integers", "transpose", ("sums",), {"permutation": (0, 3, 1, 2)}, ""),
    ]
    numbers = {"zero": 0, "minus": -1, "plus": 1}
    tensors = {name: np.asarray(value, np.float32) for name, value in numbers.items()}
    tensors["bits"] = ir.pack(kernels)
    shape = (ir.BATCH, sum(conv.in_features), height, width)
    return network(ir.Graph(tuple(nodes), tensors, "x", "float32", shape, "integers"), form)


def session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    """Returns a model ready to run on the CPU, on `threads` threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Else its threads go on spinning after a run, on the processors of what is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def load(model: onnx.ModelProto, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a model of one input as a function, which gives the first output, in `session`."""
    loaded = session(model, threads)
    (argument,) = loaded.get_inputs()
    return lambda x: loaded.run(None, {argument.name: x})[0]


class _Array(NamedTuple):
    """An array of the model.

    Attributes:
      name: in the model.
      dtype: of its elements, as `ir` writes it.
      shape: as `ir` writes it, but of length 1 along an axis along which it would only repeat; None for
        one between the nodes of an operation.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None = None


class _Model:
    """Nodes and constants of a model."""

    def __init__(self, graph: ir.Graph, form: str):
        if form not in FORMS:
            raise ValueError(f"form={form!r}: must be one of {', '.join(FORMS)}")
        self.form = form
        self._graph = graph
        self._known = _shapes(graph)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}
        self._numbers = itertools.count()
        image = _Array(graph.input, graph.dtype, graph.shape)
        self._arrays = {graph.input: image}
        for name, tensor in graph.tensors.items():
            self._constants[name] = tensor
            self._arrays[name] = _Array(name, tensor.dtype.name, tensor.shape)

    def emit(self, node: ir.Node) -> None:
        """Adds what the table says of a node of the graph; the result has the node's name."""
        operation = _TABLE[node.op]
        operands = [self._arrays[i] for i in node.inputs]
        try:
            if not operation.repeats:
                operands = [self._whole(x, i) for x, i in zip(operands, node.inputs, strict=True)]
            if operation.widens:
                operands = [self.wide(x) for x in operands]
            before = len(self._nodes)
            y = operation.rule(self, *operands, **node.attributes)
        except _Missing as missing:
            raise UserError(f"{node.op}: ONNX has not {missing}", node.layer or "the network") from None
        known = self._known[node.name]
        shape = y.shape
        if shape is None:
            shape = _broadcast_shapes([x.shape for x in operands]) if operation.repeats else known.shape
        y = self.cast(y, known.dtype)._replace(shape=shape)
        if node.name == self._graph.output:
            y = self._repeated(y, known.shape)
        made = self._nodes[before:]
        if not made or made[-1].output[0] != y.name:
            y = self.add("Identity", y)._replace(shape=y.shape)
        # Nothing reads the last node yet.
        self._nodes[-1].output[0] = self._nodes[-1].name = node.name
        self._arrays[node.name] = y._replace(name=node.name)

    def finish(self) -> onnx.ModelProto:
        """Returns the checked model."""
        output = self._graph.output
        graph = helper.make_graph(
            self._nodes,
            "ftbnn_jax",
            [_info(self._arrays[self._graph.input])],
            [_info(self._arrays[output])],
            self._initializers(),
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="ftbnn_jax",
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def _initializers(self) -> list[onnx.TensorProto]:
        read = {name for node in self._nodes for name in node.input}
        return [
            numpy_helper.from_array(value, name)
            for name, value in self._constants.items()
            if name in read
        ]

    # What the rules build with.

    def add(self, op: str, *inputs: _Array | None, dtype: str = "", **attributes: Any) -> _Array:
        """Adds a node of one output, which has the first input's dtype unless another is given."""
        name = self._new(op)
        names = ["" if x is None else x.name for x in inputs]
        self._nodes.append(helper.make_node(op, names, [name], name, **attributes))
        return _Array(name, dtype or inputs[0].dtype)

    def constant(self, value: Any, dtype: str = "int64") -> _Array:
        """Adds numbers."""
        name = self._new("constant")
        self._constants[name] = np.asarray(value, dtype)
        return _Array(name, dtype, self._constants[name].shape)

    def value(self, x: _Array) -> np.ndarray | None:
        """Returns the numbers of a constant, None for anything else."""
        return self._constants.get(x.name)

    def cast(self, x: _Array, dtype: str) -> _Array:
        """Changes a dtype where it is another."""
        if x.dtype == dtype:
            return x
        return self.add("Cast", x, dtype=dtype, to=_type(dtype))._replace(shape=x.shape)

    def wide(self, x: _Array) -> _Array:
        """Changes a dtype that onnxruntime's operations do not have."""
        dtype, value = _WIDE.get(x.dtype), self.value(x)
        if dtype is None:
            # In 64 bits, onnxruntime 1.31 takes the larger of the lower halves for a maximum.
            raise _Missing(f"an operation on {x.dtype}")
        if dtype != x.dtype and value is not None:
            return self.constant(value.astype(dtype), dtype)
        return self.cast(x, dtype)

    def dims(self, shape: Sequence[int]) -> _Array:
        """Returns a shape as numbers, those that depend on the batch computed."""
        shape = np.asarray(shape, np.int64)
        if (shape >= 0).all():
            return self.constant(shape)
        images = self._arrays[self._graph.input]
        batch = self.add("Shape", images, dtype="int64", start=0, end=1)
        of_batch = self.add("Mul", batch, self.constant(np.maximum(-shape, 0)))
        return self.add("Add", of_batch, self.constant(np.maximum(shape, 0)))

    def reshape(self, x: _Array, shape: Sequence[int]) -> _Array:
        """Reshapes to a shape of the graph."""
        if x.shape is not None and tuple(shape) == x.shape:
            return x
        from_batch = [n < 0 for n in shape]
        if sum(from_batch) == 1:
            wanted = self.constant([-1 if n < 0 else n for n in shape])
        else:
            wanted = self.dims(shape)
        return self.add("Reshape", x, wanted)

    def transpose(self, x: _Array, permutation: Sequence[int]) -> _Array:
        """Reorders axes; those of a constant beforehand."""
        if list(permutation) == list(range(len(permutation))):
            return x
        value = self.value(x)
        if value is not None:
            return self.constant(value.transpose(permutation), x.dtype)
        return self.add("Transpose", x, perm=list(permutation))

    def slice(self, x: _Array, cuts: Mapping[int, tuple[int, int, int]]) -> _Array:
        """Cuts axes to (start, limit, step); a limit may count from the end as ONNX's do."""
        if not cuts:
            return x
        starts, limits, steps = zip(*cuts.values(), strict=True)
        vectors = (starts, limits, tuple(cuts), steps)
        return self.add("Slice", x, *map(self.constant, vectors))

    def _whole(self, x: _Array, name: str) -> _Array:
        """Repeats what was left out, once for all that read it."""
        self._arrays[name] = self._repeated(x, self._known[name].shape)
        return self._arrays[name]

    def _repeated(self, x: _Array, shape: tuple[int, ...]) -> _Array:
        if x.shape == shape:
            return x
        missing = [1 if own == n else n for own, n in zip(x.shape, shape, strict=True)]
        return self.add("Expand", x, self.dims(missing))._replace(shape=shape)

    def _new(self, what: str) -> str:
        names = (f"{what}_{number}" for number in self._numbers)
        return next(name for name in names if name not in self._known)


def _shapes(graph: ir.Graph) -> dict[str, _Array]:
    """Returns every array of a graph; what grows with the batch is a multiple of it."""
    one, two = (graph.shapes(batch) for batch in (1, 2))
    known = {name: _Array(name, t.dtype.name, t.shape) for name, t in graph.tensors.items()}
    for name, x in one.items():
        pairs = zip(x.shape, two[name].shape, strict=True)
        known[name] = _Array(name, x.dtype.name, tuple(n if n == m else -n for n, m in pairs))
    return known


def _broadcast_shapes(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    rank = max(map(len, shapes))
    aligned = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(next((n for n in axis if n != 1), 1) for axis in zip(*aligned, strict=True))


def _type(dtype: str) -> int:
    """Returns what ONNX calls a dtype."""
    names = {"float32": "FLOAT", "float64": "DOUBLE"}
    return getattr(TensorProto, names.get(dtype, dtype.upper()))


def _info(x: _Array) -> onnx.ValueInfoProto:
    dims = ["batch" if n == ir.BATCH else None if n < 0 else n for n in x.shape]
    return helper.make_tensor_value_info(x.name, _type(x.dtype), dims)


class _Missing(Exception):
    """What an operation would need of ONNX."""


# Rules: of the model, the operands and the node's attributes. What a rule returns is brought to the
# dtype that the graph has, and is of the shape that the graph has unless it names a shorter one.


def _same(op: str, **attributes: Any):
    return lambda m, *x: m.add(op, *x, **attributes)


def _logical(op: str):
    return lambda m, *x: m.add(op if x[0].dtype == "bool" else f"Bitwise{op}", *x)


def _div(m, x, y):
    if x.dtype == "float32":
        return m.add("Div", x, y)
    # JAX divides by 0 to -1, and the smallest number by -1 to itself; a processor stops at either.
    x, y = m.cast(x, "int64"), m.cast(y, "int64")
    is_zero = m.add("Equal", y, m.constant(0), dtype="bool")
    quotient = m.add("Div", x, m.add("Where", is_zero, m.constant(1), y, dtype="int64"))
    return m.add("Where", is_zero, m.constant(-1), quotient, dtype="int64")


def _rsqrt(m, x):
    return m.add("Reciprocal", m.add("Sqrt", x))


def _expm1(m, x):
    # Near 0, the difference of an exponential and 1 would hold few digits.
    one, half = m.constant(1, x.dtype), m.constant(0.5, x.dtype)
    return m.add("Mul", m.add("Tanh", m.add("Mul", x, half)), m.add("Add", m.add("Exp", x), one))


def _log1p(m, x):
    # The logarithm of a sum that has been rounded, times what the rounding was.
    zero, one = m.constant(0, x.dtype), m.constant(1, x.dtype)
    total = m.add("Add", x, one)
    rounded = m.add("Sub", total, one)
    found = m.add("Mul", m.add("Log", total), m.add("Div", x, rounded))
    return m.add("Where", m.add("Equal", rounded, zero, dtype="bool"), x, found, dtype=x.dtype)


def _erfc(m, x):
    return m.add("Sub", m.constant(1, x.dtype), m.add("Erf", x))


_COMPARE = {
    **{"eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual"},
    "ne": "Equal",
}


def _compare(m, x, y, direction):
    found = m.add(_COMPARE[direction], x, y, dtype="bool")
    return m.add("Not", found) if direction == "ne" else found


def _select(m, which, x, y):
    x, y = m.wide(x), m.wide(y)
    return m.add("Where", which, y, x, dtype=x.dtype)


def _cast(m, x, dtype):
    if not (x.dtype.endswith(("float16", "float32")) and "int" in dtype):
        return m.cast(x, dtype)
    # JAX takes what is out of range for the nearest number there is, ONNX for any; float64 has them all.
    limits = [m.constant(n, "float64") for n in (np.iinfo(dtype).min, np.iinfo(dtype).max)]
    return m.add("Clip", m.cast(x, "float64"), *limits)


def _integer_pow(m, x, y):
    if y == 0:
        return m.add("Pow", x, m.constant(0, x.dtype))
    found, rest = None, abs(y)
    while rest:
        if rest & 1:
            found = x if found is None else m.add("Mul", found, x)
        rest >>= 1
        if rest:
            x = m.add("Mul", x, x)
    return found if y > 0 else m.add("Reciprocal", found)


def _reshape(m, x, shape):
    return m.reshape(x, shape)


def _transpose(m, x, permutation):
    return m.transpose(x, permutation)


def _broadcast(m, x, shape, axes):
    own = [1] * len(shape)
    for axis, n in zip(axes, x.shape, strict=True):
        own[axis] = n
    missing = [i for i in range(len(shape)) if i not in axes]
    y = m.add("Unsqueeze", x, m.constant(missing)) if missing else x
    return y._replace(shape=tuple(own))


def _slice(m, x, start, limit, strides):
    axes = zip(x.shape, start, limit, strides, strict=True)
    cut = {i: a for i, (n, *a) in enumerate(axes) if tuple(a) != (0, n, 1)}
    if not cut:
        return x
    starts, limits, steps = zip(*cut.values(), strict=True)
    vectors = (m.dims(starts), m.dims(limits), m.constant(list(cut)), m.constant(steps))
    return m.add("Slice", x, *vectors)


def _take(m, x, places, axis):
    last = m.add("Sub", m.cast(m.dims(x.shape[axis : axis + 1]), "int32"), m.constant(1, "int32"))
    inside = m.add("Min", m.add("Max", places, m.constant(0, "int32")), last)
    return m.add("Gather", x, inside, axis=axis)


def _concatenate(m, *x, axis):
    return x[0] if len(x) == 1 else m.add("Concat", *x, axis=axis)


def _pad(m, x, value, edges):
    # What stands between elements is put behind each of them; what is behind the last is cut off again.
    shape = list(x.shape)
    for axis, (_, _, between) in enumerate(edges):
        if between:
            x = m.add("Unsqueeze", x, m.constant([axis + 1]))
            x = m.add("Pad", x, m.constant([0, between]), value, m.constant([axis + 1]))
            shape[axis] *= between + 1
            x = m.reshape(x, shape)
    ends = [(low, high - between) for low, high, between in edges]
    added = [max(0, end[i]) for i in (0, 1) for end in ends]
    if any(added):
        x = m.add("Pad", x, m.constant(added), value)
    cuts = [(max(0, -low), high if high < 0 else _END, 1) for low, high in ends]
    return m.slice(x, {i: cut for i, cut in enumerate(cuts) if cut != (0, _END, 1)})


def _reduce(op: str):
    def rule(m, x, axes):
        if op == "ReduceSum" and x.dtype == "int32":
            # In 32 bits, onnxruntime 1.31 ends a sum at the largest number.
            x = m.cast(x, "int64")
        return m.add(op, x, m.constant(axes), keepdims=0) if axes else x

    return rule


def _argmax(m, x, axis):
    return m.add("ArgMax", x, dtype="int64", axis=axis, keepdims=0)


def _window(kind: str):
    def rule(m, x, window, strides, padding):
        geometry = zip(window, strides, padding, strict=True)
        axes = [i for i, axis in enumerate(geometry) if axis != (1, 1, (0, 0))]
        if not axes:
            return x
        if x.shape[axes[0]] < 0:
            raise _Missing("a window over several images")
        inside = all(0 <= n < window[i] for i in axes for n in padding[i])
        if x.dtype == "float32" and len(axes) <= 3 and inside:
            return _pool(m, x, kind, axes, window, strides, padding)
        return _windows_of_slices(m, x, kind, axes, window, strides, padding)

    return rule


def _pool(m, x, kind, axes, window, strides, padding):
    """Windows along three axes at most, padded by less than they hold."""
    others = [i for i in range(len(x.shape)) if i not in axes]
    order = [*others, *axes]
    y = m.transpose(x, order)
    if len(others) != 2:
        y = m.add("Reshape", y, m.constant([-1, 1, *(x.shape[i] for i in axes)]))
    geometry = {
        "kernel_shape": [window[i] for i in axes],
        "strides": [strides[i] for i in axes],
        "pads": [padding[i][side] for side in (0, 1) for i in axes],
    }
    if kind == "max":
        y = m.add("MaxPool", y, **geometry)
    else:
        y = m.add("AveragePool", y, count_include_pad=1, **geometry)
        y = m.add("Mul", y, m.constant(math.prod(window), "float32"))
    if len(others) != 2:
        sizes = _window_counts(x.shape, window, strides, padding)
        y = m.reshape(y, [*(x.shape[i] for i in others), *(sizes[i] for i in axes)])
    return m.transpose(y, np.argsort(order).tolist())


def _windows_of_slices(m, x, kind, axes, window, strides, padding):
    """Windows of any kind, axis by axis, from slices that lie beside each other."""
    op, nothing = "Add", 0
    if kind == "max":
        op, nothing = "Max", -np.inf if x.dtype == "float32" else np.iinfo(x.dtype).min
    counts = _window_counts(x.shape, window, strides, padding)
    for i in axes:
        edges = [(*padding[i], 0) if axis == i else (0, 0, 0) for axis in range(len(counts))]
        padded = _pad(m, x, m.constant(nothing, x.dtype), edges)
        reach, step = (counts[i] - 1) * strides[i] + 1, strides[i]
        slices = [m.slice(padded, {i: (k, k + reach, step)}) for k in range(window[i])]
        shape = (*x.shape[:i], counts[i], *x.shape[i + 1 :])
        x = functools.reduce(functools.partial(m.add, op), slices)._replace(shape=shape)
    return x


def _window_counts(shape, window, strides, padding):
    axes = zip(shape, window, strides, padding, strict=True)
    return [n if w == s == 1 and n < 0 else (n + sum(edge) - w) // s + 1 for n, w, s, edge in axes]


def _conv(m, x, kernel, strides, padding, input_dilation, dilation, groups, dtype):
    op, result = "ConvInteger", "int32"
    if not {x.dtype, kernel.dtype} <= {"int8", "uint8"}:
        x, kernel = m.wide(x), m.wide(kernel)
        op, result = "Conv", "float32"
        if {x.dtype, kernel.dtype} != {"float32"}:
            raise _Missing(f"a convolution of {x.dtype} and {kernel.dtype}, only of float32 or 8 bits")
    if set(input_dilation) != {1} or min(map(min, padding)) < 0:
        inner = [(*edge, n - 1) for edge, n in zip(padding, input_dilation, strict=True)]
        x = _pad(m, x, m.constant(0, x.dtype), [(0, 0, 0), *inner, (0, 0, 0)])
        padding = ((0, 0),) * len(padding)
    rank = len(strides) + 2
    weights = m.transpose(kernel, (rank - 1, rank - 2, *range(rank - 2)))
    y = m.transpose(x, _first(rank))
    y = m.add(op, y, weights, dtype=result, group=groups, **_geometry(strides, padding, dilation))
    return m.transpose(y, _last(rank))


def _first(rank: int) -> list[int]:
    """Returns the order of axes that has the channels before the positions."""
    return [0, rank - 1, *range(1, rank - 1)]


def _last(rank: int) -> list[int]:
    return [0, *range(2, rank), 1]


def _geometry(strides, padding, dilation) -> dict[str, list[int]]:
    pads = [edge[side] for side in (0, 1) for edge in padding]
    return {"strides": list(strides), "pads": pads, "dilations": list(dilation)}


def _dot(m, x, y, contracting, batch, dtype):
    (of_x, of_y), (batch_x, batch_y) = contracting, batch
    if of_x == (len(x.shape) - 1,) and len(of_y) == 1 and len(y.shape) == 2:
        return m.add("MatMul", x, m.transpose(y, (of_y[0], 1 - of_y[0])))
    letters = iter(string.ascii_letters)
    named_x, named_y = ([next(letters) for _ in operand.shape] for operand in (x, y))
    for i, j in zip(of_x + batch_x, of_y + batch_y, strict=True):
        named_y[j] = named_x[i]
    summed, shared = ({named_x[i] for i in axes} for axes in (of_x, batch_x))
    free = [name for name in named_x + named_y if name not in summed | shared]
    result = [*(named_x[i] for i in batch_x), *free]
    return m.add("Einsum", x, y, equation=f"{''.join(named_x)},{''.join(named_y)}->{''.join(result)}")


def _binary_conv(m, x, bits, **a):
    kernels = [k.reshape(*a["kernel_size"], *k.shape[2:]) for k in ir.unpack(a, m.value(bits))]
    rank = len(x.shape)
    y = m.transpose(m.cast(x, m.form), _first(rank))
    y = _convolve_signs(m, y, kernels, **_geometry(a["strides"], a["padding"], a["dilation"]))
    return m.transpose(y, _last(rank))


def _binary_dot(m, x, bits, **a):
    kernels = [k[0, 0] for k in ir.unpack(a, m.value(bits))]
    signs = m.cast(x, m.form)
    if len(kernels) == 1:
        return _sums(m, "MatMul", signs, kernels[0])
    # Groups are those of a convolution with one position.
    rows = m.add("Reshape", signs, m.constant([-1, sum(a["in_features"]), 1]))
    y = _convolve_signs(m, rows, [k[None] for k in kernels])
    return m.reshape(y, (*x.shape[:-1], sum(a["out_features"])))


def _convolve_signs(m, x, kernels, **geometry):
    """Neighbouring groups of one width are one convolution; channels come before positions."""
    parts, start = [], 0
    width = sum(k.shape[-2] for k in kernels)
    for shape, band in itertools.groupby(kernels, key=np.shape):
        band = list(band)
        stop = start + len(band) * shape[-2]
        part = x if stop - start == width else m.slice(x, {1: (start, stop, 1)})
        weights = np.concatenate(band, axis=-1)
        weights = weights.transpose(-1, -2, *range(weights.ndim - 2))
        parts.append(_sums(m, "Conv", part, weights, group=len(band), **geometry))
        start = stop
    return _concatenate(m, *parts, axis=1)


def _sums(m, op, signs, positive, **attributes):
    """Adds a product of signs and weights, True for one of +1."""
    if m.form == "float32":
        return m.add(op, signs, m.constant(np.where(positive, 1, -1), "float32"), **attributes)
    # 0 and 2 around a zero point of 1 are -1 and 1. With int8 weights onnxruntime 1.31 has no fast
    # product on x86: 10 to 20 times as slow.
    weights, one = m.constant(2 * positive, "uint8"), m.constant(1, "uint8")
    return m.add(f"{op}Integer", signs, weights, None, one, dtype="int32", **attributes)


class _Operation(NamedTuple):
    """An entry of the table.

    Attributes:
      rule: adds the nodes.
      repeats: whether operands may be of length 1 where the graph repeats them.
      widens: whether operands are brought to dtypes that onnxruntime's operations have.
    """

    rule: Callable[..., _Array]
    repeats: bool = False
    widens: bool = True


_ELEMENTWISE = {
    **{"neg": "Neg", "abs": "Abs", "sign": "Sign", "floor": "Floor", "ceil": "Ceil", "round": "Round"},
    **{"exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "erf": "Erf", "sqrt": "Sqrt"},
    **{"add": "Add", "sub": "Sub", "mul": "Mul", "pow": "Pow", "max": "Max", "min": "Min"},
}

_TABLE: dict[str, _Operation] = {
    **{name: _Operation(_same(op), repeats=True) for name, op in _ELEMENTWISE.items()},
    "rsqrt": _Operation(_rsqrt, repeats=True),
    "expm1": _Operation(_expm1, repeats=True),
    "log1p": _Operation(_log1p, repeats=True),
    "erfc": _Operation(_erfc, repeats=True),
    "div": _Operation(_div, repeats=True),
    "not": _Operation(_logical("Not"), repeats=True, widens=False),
    "and": _Operation(_logical("And"), repeats=True, widens=False),
    "or": _Operation(_logical("Or"), repeats=True, widens=False),
    "compare": _Operation(_compare, repeats=True),
    "select": _Operation(_select, repeats=True, widens=False),
    "cast": _Operation(_cast, repeats=True, widens=False),
    "integer_pow": _Operation(_integer_pow, repeats=True),
    "reshape": _Operation(_reshape),
    "transpose": _Operation(_transpose),
    "broadcast": _Operation(_broadcast, repeats=True),
    "slice": _Operation(_slice),
    "take": _Operation(_take),
    "concatenate": _Operation(_concatenate),
    "pad": _Operation(_pad),
    "reduce_sum": _Operation(_reduce("ReduceSum")),
    "reduce_max": _Operation(_reduce("ReduceMax")),
    "argmax": _Operation(_argmax),
    "window_sum": _Operation(_window("sum")),
    "window_max": _Operation(_window("max")),
    "conv": _Operation(_conv, widens=False),
    "dot": _Operation(_dot),
    "binary_conv": _Operation(_binary_conv, widens=False),
    "binary_dot": _Operation(_binary_dot, widens=False),
}
