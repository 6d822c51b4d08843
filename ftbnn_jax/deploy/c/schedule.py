"""A graph as the list of loops that the C program runs, with sizes and memory.

A loop begins with an operation that gives one row after another (the last axis of its result), or with
nothing, and goes on with elementwise operations on that row: norm, residual, activation. What other
loops read is stored; what a binary product reads is packed into bits at once. Reshaping, slicing and the
like are another way to read what is stored already.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy.c import memory, operations
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir
from ftbnn_jax.ops.packed import bits

# As in kernels/ftbnn_binary.h: positions convolved at once, and elements touched past the last one.
BLOCK = 4
SLACK = 16
# A copy of an array of a graph, in order, for who cannot read it in another one.
COPY = "copy"
_INPUTS = ("uint8", "int8", "int16", "int32", *operations.REAL)


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


class Multiples(NamedTuple):
    """A matrix of multiples of one number for each column, as it is stored.

    Attributes:
      values: int16 `[I, O]`.
      scale: float32 `[O]`.
      name: of the multiples in the graph.
      scale_name: of the scale.
    """

    values: np.ndarray
    scale: np.ndarray
    name: str
    scale_name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """A binary product.

    Attributes:
      name: of its layer in reports.
      node: the operation.
      shape: of its signs for one image.
      result: of its integers, likewise.
      kernels: booleans `[KH, KW, I_g, O_g]`, True for +1, one a group.
    """

    name: str
    node: ir.Node
    shape: tuple[int, ...]
    result: tuple[int, ...]
    kernels: tuple[np.ndarray, ...]

    @functools.cached_property
    def _conv(self):
        return ir.packed_conv(self.node.attributes)

    @property
    def form(self) -> str:
        """One of `ops.packed.convolution.FORMS`."""
        return self.node.attributes["form"]

    @property
    def group_inputs(self) -> tuple[int, ...]:
        """Input channels of each group."""
        return self.node.attributes["in_features"]

    @property
    def group_outputs(self) -> tuple[int, ...]:
        """Output channels of each group."""
        return self.node.attributes["out_features"]

    @property
    def features(self) -> int:
        """Output channels."""
        return sum(self.group_outputs)

    @property
    def positions(self) -> int:
        """Positions of the output."""
        return math.prod(self.result[:-1])

    @property
    def plane_shape(self) -> tuple[int, int]:
        """Height and width of the input; rows of a matrix are positions along one line."""
        if self.node.op == "binary_dot":
            return 1, math.prod(self.shape[:-1])
        return (1, *self.shape[1:-1])[-2:]

    @property
    def out_shape(self) -> tuple[int, int]:
        """Height and width of the output."""
        return self._conv.output_shape(*self.plane_shape)

    @property
    def geometry(self) -> Any:
        """Kernel, strides, padding and dilation, as `ops.packed.convolution.PackedConv` has them."""
        return self._conv

    @property
    def plane(self) -> int:
        """Words of one bit of every input value, with those of a position outside."""
        return (math.prod(self.plane_shape) + 1) * sum(map(bits.words_for, self.group_inputs))

    @property
    def sign_words(self) -> int:
        """Words of all bits of its signs."""
        return self.plane * (2 if self.form == "ternary" else 1)

    @property
    def taps(self) -> int:
        """Positions of its kernel."""
        return math.prod(self._conv.kernel_size)

    @property
    def multiply_adds(self) -> int:
        """Binary multiply-adds for one image."""
        return self.positions * sum(map(math.prod, map(np.shape, self.kernels)))

    @property
    def windows(self) -> int:
        """Words that `ftbnn_convolve` takes for itself."""
        window = max(
            self.taps * (i // 32) + bits.words_for(self.taps * (i % 32)) for i in self.group_inputs
        )
        return 2 * (sum(map(bits.words_for, self.group_inputs)) + BLOCK * self.taps + BLOCK * window)


@dataclasses.dataclass(eq=False)
class Loop:
    """One loop.

    Attributes:
      shape: of its rows, those of one image; the last axis is one row.
      kernel: what gives the rows; None where there is nothing but elementwise operations.
      nodes: elementwise operations on them, in order.
      packs: binary products whose signs it writes.
      stores: names of the results that are kept.
    """

    shape: tuple[int, ...]
    kernel: ir.Node | None = None
    nodes: list[ir.Node] = dataclasses.field(default_factory=list)
    packs: list[Product] = dataclasses.field(default_factory=list)
    stores: list[str] = dataclasses.field(default_factory=list)

    @property
    def positions(self) -> int:
        """Rows."""
        return math.prod(self.shape[:-1])

    @property
    def width(self) -> int:
        """Elements of a row."""
        return self.shape[-1]

    def results(self) -> list[ir.Node]:
        """Everything that it computes."""
        return [*filter(None, [self.kernel]), *self.nodes]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an array lies.

    Attributes:
      pool: "values" for real numbers, "integers" for others, "logits" for the result.
      offset: among the pool's elements.
    """

    pool: str
    offset: int


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """The loops, and how many elements of memory they need.

    Attributes:
      artifact: what was lowered.
      constants: arrays that are the same for all images, but for words of bits, by name.
      kernels: matrices of products of rows by node, `[I, O]` or `Multiples`.
      tables: names of arrays that are one number for each pixel value and channel.
      products: the binary ones, in order.
      loops: in order.
      views: how a node reads an array, by the names of both.
      places: of what is stored.
      signs: offset of each product's signs among the words.
      sizes: elements of each pool.
    """

    artifact: artifact_lib.Artifact
    constants: dict[str, np.ndarray]
    kernels: dict[str, Any]
    tables: tuple[str, ...]
    products: tuple[Product, ...]
    loops: tuple[Loop, ...]
    views: dict[tuple[str, str], View]
    places: dict[str, Place]
    signs: tuple[int, ...]
    sizes: dict[str, int]

    @property
    def graph(self) -> ir.Graph:
        """The graph."""
        return self.artifact.graph

    @functools.cached_property
    def nodes(self) -> dict[str, ir.Node]:
        """The graph's nodes by name."""
        return {node.name: node for node in self.graph.nodes}

    @functools.cached_property
    def shapes(self) -> dict[str, Any]:
        """Shape and dtype of every array, for one image."""
        return _shapes(self.graph, self.constants)

    @property
    def results(self) -> int:
        """Numbers that the network gives for an image."""
        return math.prod(self.shapes[self.graph.output].shape)

    def view(self, name: str) -> View:
        """Returns how an array is read."""
        return _view(self.nodes, self.shapes, self._computed, name)

    def constant_of(self, name: str) -> str:
        """Returns the constant that an array is a view of; "" if it is of none."""
        if name not in self.shapes:
            return ""
        root = self.view(name).root
        return root if root in self.constants else ""

    def read(self, node: ir.Node, name: str) -> View:
        """Returns how a node reads one of its operands."""
        return self.views[node.name, name]

    @functools.cached_property
    def _computed(self) -> set[str]:
        results = {node.name for loop in self.loops for node in loop.results()}
        return results | self.constants.keys()

    @property
    def arena_bytes(self) -> int:
        """Bytes of memory that the program needs beside its weights and its stack."""
        wide = self.sizes["wide"]
        elements = sum(count for pool, count in self.sizes.items() if pool not in ("logits", "wide"))
        # Sums may have 8 bytes each. A magic number, a count, and two pointers, whose size and alignment
        # is at most 8.
        return 4 * elements + 8 * wide + 48


def _shapes(graph: ir.Graph, constants) -> dict[str, Any]:
    found = dict(graph.shapes())
    for name, array in constants.items():
        found.setdefault(name, array)
    return found


def _view(nodes, shapes, stored, name: str) -> View:
    shape = tuple(shapes[name].shape)
    node = nodes.get(name)
    if node is None or name in stored or node.op not in operations.VIEWS:
        return View(name, 0, strides_of(shape), shape)
    inner = _view(nodes, shapes, stored, node.inputs[0])
    a = node.attributes
    if node.op == "reshape":
        strides = _reshaped(inner, shape)
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


def _reshaped(view: View, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Returns the strides of a reshaped view; None where it needs a copy."""
    if view.in_order:
        return strides_of(shape)
    there = [(n, s) for n, s in zip(view.shape, view.strides, strict=True) if n != 1]
    if [n for n, _ in there] != [n for n in shape if n != 1]:
        return None
    left = iter(there)
    return tuple(0 if n == 1 else next(left)[1] for n in shape)


def lower(artifact: artifact_lib.Artifact) -> Network:
    """Makes loops of a graph, and lays what they store out in memory.

    Raises:
      UserError: there is an operation that the C program does not have.
    """
    return _Lowering(artifact).run()


class _Lowering:
    """From graph to loops: the state of `lower`."""

    def __init__(self, artifact: artifact_lib.Artifact):
        self.artifact = artifact
        graph = artifact.graph
        self.graph = graph
        self.nodes = {node.name: node for node in graph.nodes}
        self.kernels: dict[str, Any] = {}
        self.constants = _constants(graph)
        self.shapes = _shapes(graph, self.constants)
        self._check()
        self.tables = self._tables()
        self.live = self._live()
        self.loops: list[Loop] = []
        self.loop_of: dict[str, int] = {}
        self.reads: list[set[str]] = []
        self.packed_in: list[int] = []
        # By reader and array: what is copied later is read where it was.
        self.views: dict[tuple[str, str], View] = {}
        self.products: list[Product] = []

    def _check(self) -> None:
        graph, rule = self.graph, self.artifact.preprocessing
        if rule is None and graph.dtype not in _INPUTS:
            raise UserError(f"images: {graph.dtype}: the C program takes one of {', '.join(_INPUTS)}")
        for node in graph.nodes:
            if node.name not in self.constants:
                shapes = [self.shapes[n] for n in node.inputs if n in self.shapes]
                operations.check(node, shapes, self.shapes[node.name])
        if not graph.binary_products():
            raise UserError("the network: none of its products is binary; the C program is for those")
        result = self.shapes[graph.output]
        if result.dtype.name not in operations.REAL:
            raise UserError(
                f"the network: it gives {result.dtype.name}; the C program gives float32 alone"
            )
        if 0 in result.shape or graph.output in self.constants or graph.output == graph.input:
            raise UserError("the network: its result does not depend on the images")

    def _tables(self) -> set[str]:
        """Returns the arrays that have one number for each pixel value and channel."""
        graph = self.graph
        if graph.dtype != "uint8" or len(graph.shape) < 2:
            return set()
        shape, found = ir.sized(graph.shape, 1), {graph.input}
        for node in graph.nodes:
            if node.op not in operations.ELEMENTWISE or self.shapes[node.name].shape != shape:
                continue
            others = [n for n in node.inputs if n not in found]
            per_channel = all(
                n in self.constants and math.prod(self.constants[n].shape[:-1]) == 1 for n in others
            )
            if per_channel and len(others) < len(node.inputs):
                found.add(node.name)
        return {n for n in found - {graph.input} if self.shapes[n].dtype.name in operations.REAL}

    def _live(self) -> list[ir.Node]:
        """Returns the nodes that the program computes."""
        live, kept = {self.graph.output}, []
        for node in reversed(self.graph.nodes):
            if node.name in live and node.name not in self.constants:
                kept.append(node)
                live.update(self._operands(node))
        return kept[::-1]

    def _operands(self, node: ir.Node) -> tuple[str, ...]:
        """Returns the arrays that a node reads in the program, but for kernels."""
        if node.op in ir.BINARY:
            return node.inputs[:1]
        if node.op == "conv":
            if node.inputs[1] not in self.constants:
                raise UserError(
                    f"{operations.where(node)}: its kernel depends on the images; one that is the same "
                    "for all would do"
                )
            return () if self._reads_pixels(node) else node.inputs[:1]
        if node.op == "dot" and dense(node, self.shapes, self.constants):
            return node.inputs[:1]
        return node.inputs

    def _reads_pixels(self, node: ir.Node) -> bool:
        return node.op == "conv" and node.inputs[0] in self.tables

    def run(self) -> Network:
        for node in self.live:
            if node.op in operations.VIEWS:
                continue
            if node.op in ir.BINARY:
                self._add_product(node)
            elif node.op in operations.KERNELS:
                self._add_kernel(node)
            else:
                self._add_elementwise(node)
        self._finish_output()
        tables = tuple(dict.fromkeys(n.inputs[0] for n in self.live if self._reads_pixels(n)))
        for loop in self.loops:
            node = loop.kernel
            if node and node.op == "dot" and dense(node, self.shapes, self.constants):
                self.kernels[node.name] = _dense_kernel(node, self.nodes, self.constants)
        places, signs, sizes = self._place()
        return Network(
            self.artifact,
            self.constants,
            self.kernels,
            tables,
            tuple(self.products),
            tuple(self.loops),
            self.views,
            places,
            signs,
            sizes,
        )

    # Loops.

    def _begin(self, node: ir.Node, is_kernel: bool) -> int:
        shape = tuple(self.shapes[node.name].shape)
        loop = Loop(shape, node if is_kernel else None, [] if is_kernel else [node])
        self.loops.append(loop)
        self.reads.append(set())
        self.loop_of[node.name] = len(self.loops) - 1
        return len(self.loops) - 1

    def _stored(self) -> Iterable[str]:
        return self.loop_of.keys() | self.constants.keys()

    def _view(self, name: str) -> View:
        return _view(self.nodes, self.shapes, self._stored(), name)

    def _root(self, name: str) -> str:
        """Returns what is stored where an array is read, with a copy where its order needs one."""
        node = self.nodes.get(name)
        if name in self.loop_of or name in self.constants or node is None:
            return name
        if node.op not in operations.VIEWS:
            return name
        self._root(node.inputs[0])
        shape = self.shapes[name].shape
        if node.op == "reshape" and _reshaped(self._view(node.inputs[0]), shape) is None:
            self._copy(node.inputs[0])
        return self._view(name).root

    def _copy(self, name: str) -> int:
        """Adds a loop that copies what is read in another order."""
        view = self._view(name)
        layer = self.nodes[name].layer if name in self.nodes else ""
        node = ir.Node(name, COPY, (view.root,), {}, layer)
        self.views[name, view.root] = view
        self.loops.append(Loop(tuple(self.shapes[name].shape), None, [node]))
        self.reads.append({view.root})
        self.loop_of[name] = len(self.loops) - 1
        return len(self.loops) - 1

    def _in_order(self, name: str) -> str:
        """Returns the root of an array, which lies in order."""
        root = self._root(name)
        if not (self._view(name).in_order and self._view(name).offset == 0) or root in self.constants:
            self._copy(name)
            return name
        return root

    def _add_product(self, node: ir.Node) -> None:
        source = node.inputs[0]
        kernels = tuple(ir.unpack(node.attributes, self.graph.tensors[node.inputs[1]]))
        used = {product.name for product in self.products}
        name = node.layer if node.layer and node.layer not in used else node.name
        shapes = (tuple(self.shapes[n].shape) for n in (source, node.name))
        product = Product(name, node, *shapes, kernels)
        self._root(source)
        if source not in self.loop_of:
            self._copy(source)
        self.loops[self.loop_of[source]].packs.append(product)
        self.packed_in.append(self.loop_of[source])
        self.products.append(product)
        self._begin(node, True)

    def _add_kernel(self, node: ir.Node) -> None:
        if self._reads_pixels(node):
            roots = set()
        else:
            roots = {self._in_order(name) for name in self._operands(node) if name not in self.constants}
        self._note_views(node)
        index = self._begin(node, True)
        self.reads[index] |= roots

    def _note_views(self, node: ir.Node) -> None:
        for name in node.inputs:
            if name in self.shapes:
                self.views[node.name, name] = self._view(name)

    def _add_elementwise(self, node: ir.Node) -> None:
        roots = {name: self._root(name) for name in node.inputs}
        self._note_views(node)
        last = max((self.loop_of.get(root, -1) for root in roots.values()), default=-1)
        shape = tuple(self.shapes[node.name].shape)
        direct = all(
            roots[name] == name and tuple(self.shapes[name].shape) == shape
            for name in node.inputs
            if self.loop_of.get(roots[name], -1) == last
        )
        if last >= 0 and direct and self.loops[last].shape == shape:
            self.loops[last].nodes.append(node)
            self.loop_of[node.name] = last
        else:
            last = self._begin(node, False)
        self.reads[last] |= {r for r in roots.values() if self.loop_of.get(r, -1) != last}

    def _finish_output(self) -> None:
        output = self.graph.output
        root = self._root(output)
        view = self._view(output)
        whole = root in self.loop_of and math.prod(self.shapes[root].shape) == math.prod(view.shape)
        if not (whole and view.in_order and view.offset == 0):
            self._copy(output)
            root = output
        self.result = root

    # Memory.

    def _place(self):
        last_read = {self.result: len(self.loops)}
        for index, roots in enumerate(self.reads):
            for root in roots:
                if root in self.loop_of:
                    last_read[root] = max(index, last_read.get(root, -1))
        for loop in self.loops:
            loop.stores = [node.name for node in loop.results() if node.name in last_read]
        pools = {n: self._pool(n) for n in last_read}
        buffers: dict[str, list[memory.Buffer]] = {"values": [], "integers": []}
        # Names that share a buffer, by pool.
        members: dict[str, list[list[str]]] = {"values": [], "integers": []}
        at: dict[str, int] = {}
        for index, loop in enumerate(self.loops):
            for name in loop.stores:
                pool = pools[name]
                if pool == "logits":
                    continue
                size = math.prod(self.shapes[name].shape)
                shared = self._overwritten(index, name, pools, last_read)
                if shared:
                    at[name] = at[shared]
                    buffer = buffers[pool][at[name]]
                    buffers[pool][at[name]] = dataclasses.replace(buffer, last=last_read[name])
                    members[pool][at[name]].append(name)
                else:
                    at[name] = len(buffers[pool])
                    buffers[pool].append(memory.Buffer(size, index, last_read[name]))
                    members[pool].append([name])
        sizes, places = {}, {self.result: Place("logits", 0)}
        for pool, found in buffers.items():
            offsets, sizes[pool] = memory.place(found)
            for names, offset in zip(members[pool], offsets, strict=True):
                places |= {name: Place(pool, offset) for name in names}
        runs = {product.node.name: self.loop_of[product.node.name] for product in self.products}
        signs, sizes["signs"] = memory.place(
            [
                memory.Buffer(product.sign_words, first, runs[product.node.name])
                for product, first in zip(self.products, self.packed_in, strict=True)
            ]
        )
        sizes |= self._scratch()
        return places, tuple(signs), sizes

    def _pool(self, name: str) -> str:
        if name == self.result:
            return "logits"
        return "values" if self.shapes[name].dtype.name in operations.REAL else "integers"

    def _overwritten(self, index: int, name: str, pools, last_read) -> str:
        """Returns the array in whose place a loop can store one; "" if there is none."""
        loop = self.loops[index]
        taken = [other for other in loop.stores if other != name]
        for root in sorted(self.reads[index]):
            if pools.get(root) != pools[name] or last_read.get(root) != index or taken:
                continue
            if root not in self.loop_of or math.prod(self.shapes[root].shape) < math.prod(loop.shape):
                continue
            if self._kernel_reads(loop, root):
                free = self._only_read_by_kernel(loop, root) and overtaken(loop.kernel, self.shapes)
            else:
                free = self._read_in_place(loop, root)
            if free:
                return root
        return ""

    def _kernel_reads(self, loop: Loop, root: str) -> bool:
        kernel = loop.kernel
        if kernel is None or kernel.op in ir.BINARY:
            return False
        return any(self.views[kernel.name, name].root == root for name in self._operands(kernel))

    def _only_read_by_kernel(self, loop: Loop, root: str) -> bool:
        return not any(self.views[node.name, n].root == root for node in loop.nodes for n in node.inputs)

    def _read_in_place(self, loop: Loop, root: str) -> bool:
        """Whether a loop reads every element of an array just where it stores its own."""
        for node in loop.nodes:
            for name in node.inputs:
                view = self.views[node.name, name]
                if view.root == root and not (
                    view.in_order and view.offset == 0 and view.shape == loop.shape
                ):
                    return False
        return True

    def _scratch(self) -> dict[str, int]:
        values, wide, sums, windows = [1], [1], [1], [1]
        for product in self.products:
            windows.append(product.windows)
            sums.append(BLOCK * (product.features + SLACK))
        for loop in self.loops:
            row = loop.width
            packing = (row + SLACK) * len({product.node.inputs[0] for product in loop.packs})
            kernel = loop.kernel
            needed = 0
            if kernel is not None and kernel.op in ("conv", "dot"):
                needed = BLOCK * row
                geometry = real_conv(kernel, self.shapes, self.constants)
                if geometry is not None:
                    needed += geometry["kernel_height"] * geometry["row_width"] * geometry["channels"]
            elif kernel is not None and kernel.op not in ir.BINARY:
                needed = row
                if self.shapes[kernel.name].dtype.name not in operations.REAL:
                    sums.append(row)
                if kernel.op in ("window_sum", "reduce_sum"):
                    wide.append(row)
            values.append(needed + packing)
        return {"scratch": max(values), "wide": max(wide), "sums": max(sums), "windows": max(windows)}


def _constants(graph: ir.Graph) -> dict[str, np.ndarray]:
    words = {node.inputs[1] for node in graph.binary_products()}
    plain = {name: jnp.asarray(t) for name, t in graph.tensors.items() if name not in words}
    shapes = graph.shapes()
    found = {}
    for name, array in graph.constants(plain).items():
        dtype = shapes[name].dtype if name in shapes else graph.tensors[name].dtype
        found[name] = operations.rounded(np.asarray(array), dtype)
    return found


def dense(node: ir.Node, shapes, constants) -> bool:
    """Whether a product of matrices is one of rows with a constant matrix."""
    (of_x, of_kernel), batch = node.attributes["contracting"], node.attributes["batch"]
    x, kernel = (shapes[n] if n in shapes else constants[n] for n in node.inputs)
    rows = batch == ((), ()) and of_x == (len(x.shape) - 1,)
    return rows and node.inputs[1] in constants and len(kernel.shape) == 2 and len(of_kernel) == 1


def _dense_kernel(node: ir.Node, nodes, constants) -> Any:
    """Returns the matrix `[I, O]` of a product of rows, or multiples and scale that it is made of."""
    axis = node.attributes["contracting"][1][0]
    name = node.inputs[1]
    mul = nodes.get(name)
    if mul is not None and mul.op == "mul" and not axis:
        cast = nodes.get(mul.inputs[0])
        if cast is not None and cast.op == "cast" and constants[cast.inputs[0]].dtype == np.int16:
            scale = constants[mul.inputs[1]]
            if scale.shape == (1, constants[name].shape[1]):
                return Multiples(
                    constants[cast.inputs[0]], scale.reshape(-1), cast.inputs[0], mul.inputs[1]
                )
    kernel = constants[name]
    return kernel.T if axis else kernel


def real_conv(node: ir.Node, shapes, constants) -> dict[str, int] | None:
    """Returns the fields of the real convolution that a node is in C; None where it is none."""
    x = shapes[node.inputs[0]].shape
    result = shapes[node.name].shape
    if node.op == "dot":
        if not dense(node, shapes, constants):
            return None
        rows = math.prod(x[:-1])
        return {
            "height": 1,
            "width": rows,
            "channels": x[-1],
            "out_width": rows,
            "kernel_height": 1,
            "kernel_width": 1,
            "stride_y": 1,
            "stride_x": 1,
            "dilation_y": 1,
            "dilation_x": 1,
            "top": 0,
            "left": 0,
            "row_width": rows,
            "features": result[-1],
            "groups": 1,
        }
    a = node.attributes
    kernel = constants[node.inputs[1]].shape

    def pair(values, missing):
        return (missing, *values)[-2:]

    padding = pair(a["padding"], (0, 0))
    height, width = pair(x[1:-1], 1)
    return {
        "height": height,
        "width": width,
        "channels": x[-1],
        "out_width": result[-2],
        **dict(zip(("kernel_height", "kernel_width"), pair(kernel[:-2], 1), strict=True)),
        **dict(zip(("stride_y", "stride_x"), pair(a["strides"], 1), strict=True)),
        **dict(zip(("dilation_y", "dilation_x"), pair(a["dilation"], 1), strict=True)),
        "top": padding[0][0],
        "left": padding[1][0],
        "row_width": width + sum(padding[1]),
        "features": result[-1],
        "groups": a["groups"],
    }


def overtaken(node: ir.Node, shapes) -> bool:
    """Whether a window's result can be written over its input, nothing of which is read afterwards."""
    if node.op not in ("window_sum", "window_max"):
        return False
    x, result, a = shapes[node.inputs[0]].shape, shapes[node.name].shape, node.attributes
    if x[-1] != result[-1] or a["window"][-1] != 1:
        return False
    # First element that each window reads, in positions.
    first = np.zeros((1,), np.int64)
    for n, out, s, (low, _) in zip(x[:-1], result[:-1], a["strides"], a["padding"], strict=False):
        starts = np.clip(np.arange(out) * s - low, 0, n - 1)
        first = (first[:, None] * n + starts).reshape(-1)
    later = np.minimum.accumulate(first[::-1])[::-1]
    return bool((later[1:] > np.arange(len(later) - 1)).all())


def layers(loop: Loop) -> str:
    """Returns what a loop does, for a comment."""
    names = collections.Counter(node.layer for node in loop.results() if node.layer)
    operations_of = ", ".join(dict.fromkeys(node.op for node in loop.results()))
    where = names.most_common(1)[0][0] if names else "the network"
    return f"{where}: {operations_of} -> {'x'.join(map(str, loop.shape[1:] or loop.shape))}"
