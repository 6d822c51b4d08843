"""From a graph to the loops of a `schedule.Network`."""

import math
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy.c import geometry, operations, placement, schedule, views
from ftbnn_jax.deploy.c.geometry import Product
from ftbnn_jax.deploy.c.schedule import COPY, Loop, Network
from ftbnn_jax.deploy.c.views import View
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir

_INPUTS = ("uint8", "int8", "int16", "int32", *operations.REAL)


def lower(artifact: artifact_lib.Artifact, real_bits: int = 32) -> Network:
    """Makes loops of a graph, and lays what they store out in memory.

    Args:
      artifact: holds the graph.
      real_bits: of real convolutions' weights.

    Raises:
      UserError: there is an operation that the C program does not have.
    """
    return _Lowering(artifact, real_bits).run()


class _Lowering:
    """From graph to loops: the state of `lower`."""

    def __init__(self, artifact: artifact_lib.Artifact, real_bits: int):
        self.artifact = artifact
        self.real_bits = real_bits
        graph = artifact.graph
        self.graph = graph
        self.nodes = {node.name: node for node in graph.nodes}
        self.kernels: dict[str, Any] = {}
        self.constants = _constants(graph)
        self.shapes = schedule.shapes_of(graph, self.constants)
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
        if node.op == "dot" and geometry.dense(node, self.shapes, self.constants):
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
            if node and node.op == "dot" and geometry.dense(node, self.shapes, self.constants):
                self.kernels[node.name] = geometry.dense_kernel(node, self.nodes, self.constants)
        places, signs, sizes = placement.Placement(
            self.loops,
            self.reads,
            self.loop_of,
            self.products,
            self.packed_in,
            self.views,
            self.shapes,
            self.constants,
            self.result,
            self._operands,
            self.real_bits,
        ).run()
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
            self.real_bits,
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
        return views.view_of(self.nodes, self.shapes, self._stored(), name)

    def _root(self, name: str) -> str:
        """Returns what is stored where an array is read, with a copy where its order needs one."""
        node = self.nodes.get(name)
        if name in self.loop_of or name in self.constants or node is None:
            return name
        if node.op not in operations.VIEWS:
            return name
        self._root(node.inputs[0])
        shape = self.shapes[name].shape
        if node.op == "reshape" and views.reshaped(self._view(node.inputs[0]), shape) is None:
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


def _constants(graph: ir.Graph) -> dict[str, np.ndarray]:
    words = {node.inputs[1] for node in graph.binary_products()}
    plain = {name: jnp.asarray(t) for name, t in graph.tensors.items() if name not in words}
    shapes = graph.shapes()
    found = {}
    for name, array in graph.constants(plain).items():
        dtype = shapes[name].dtype if name in shapes else graph.tensors[name].dtype
        found[name] = operations.rounded(np.asarray(array), dtype)
    return found
