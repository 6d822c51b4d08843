"""Computes what the C program computes, bit by bit, in numpy: its graph, node by node.

As in `kernels/ftbnn_layers.c` and `emit`: the order in which numbers are added. Integers of binary
products are the packed runtime's.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftbnn_jax.deploy.c import geometry, operations
from ftbnn_jax.deploy.c.schedule import Network
from ftbnn_jax.graph import ir
from ftbnn_jax.host import machine

# Sums that are taken side by side: as many as stay in a processor's cache.
_SUMS_AT_ONCE = 2**16

# A `Product` is one of two matrices.
Product = Callable[[np.ndarray, np.ndarray], np.ndarray]
# Is shown each node with its operands and its result.
Note = Callable[[ir.Node, Sequence[np.ndarray], np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a batch of N images has given.

    Values have the names of the graph's nodes.

    Attributes:
      logits: float32, or int32 in fixed point, `[N, results]`.
      records: signs, float32 in the shape of the graph, and integers, int32, of each binary product.
      largest: the largest magnitude of each value, `[N]`.
      outside: the images on which a value left its range, or is not finite: booleans `[N]`.
    """

    logits: np.ndarray
    records: list[tuple[np.ndarray, np.ndarray]]
    largest: dict[str, np.ndarray]
    outside: dict[str, np.ndarray]

    def any_outside(self) -> np.ndarray:
        """Returns the images on which any value left its range, booleans `[N]`."""
        return np.any([np.zeros(len(self.logits), bool), *self.outside.values()], axis=0)


class Emulator:
    """The C program of a network.

    Args:
      network: its loops.
      arithmetic: between the binary products.
    """

    def __init__(self, network: Network, arithmetic: Any):
        self._network = network
        self._arithmetic = arithmetic
        self._order = _order(network, arithmetic)
        self._sums = {p.node.name: _integers(p) for p in network.products}

    def trace(self, images: np.ndarray, note: Note = lambda node, operands, result: None) -> Trace:
        """Runs a batch.

        Args:
          images: of the graph's dtype, `[N, ...]`.
          note: is shown every node in order.
        """
        trace = Trace(np.zeros(0), [], {}, {})
        # A number that leaves the range of float32 is reported by name, and what follows from it.
        with np.errstate(all="ignore"):
            logits = self._run(images, trace, note)
        return dataclasses.replace(trace, logits=logits.reshape(len(images), -1))

    def _run(self, images, trace, note):
        graph = self._network.graph
        readers = collections.Counter(name for node in self._order for name in node.inputs)
        readers[graph.output] += 1
        readers[graph.input] += 1
        arrays = {graph.input: self._arithmetic.input(images)}
        for node in self._order:
            operands = [
                arrays[name] if name in arrays else self._constant(node, name, len(images))
                for name in node.inputs
                if name in arrays or self._network.constant_of(name)
            ]
            table = self._arithmetic.table_of(node)
            if table is not None:
                operands = [_looked_up(table, images)]
            result = self._result(node, operands, len(images), trace)
            result = self._checked(node, result, len(images), trace)
            note(node, operands, result)
            arrays[node.name] = result
            readers.subtract(node.inputs)
            for name in node.inputs:
                if name in arrays and not readers[name]:
                    del arrays[name]
        return arrays[graph.output].astype(
            np.int32 if arrays[graph.output].dtype == np.int64 else np.float32
        )

    def _constant(self, reader, name, batch):
        """Returns a constant, or a view of one, as a node reads it."""
        if name in self._network.constants:
            return self._arithmetic.constant(reader, name)
        node = self._network.nodes[name]
        return operations.view(node, self._constant(reader, node.inputs[0], batch), batch)

    def _result(self, node, operands, batch, trace):
        arithmetic = self._arithmetic
        if node.op in operations.ELEMENTWISE:
            return arithmetic.elementwise(node, operands)
        if node.op in operations.VIEWS:
            return operations.view(node, operands[0], batch)
        if node.op in ir.BINARY:
            signs = arithmetic.signs(operands[0])
            sums = self._sums[node.name](signs)
            trace.records.append((signs, sums))
            return arithmetic.integers(node, sums)
        if node.name in arithmetic.layers:
            return self._integer_layer(arithmetic.layers[node.name], operands[0], batch, trace)
        if node.op in ("conv", "dot"):
            return arithmetic.from_sums(node, self._products(node, operands))
        if node.op in operations.FOLDS:
            parts = operations.fold(node, operands[0])
            if node.op.endswith("max"):
                return parts.max(0)
            return arithmetic.from_sums(node, _total(arithmetic.begin(parts)))
        if node.op == "concatenate":
            operands = arithmetic.join(node, operands)
        return operations.moved(node, operands)

    def _integer_layer(self, layer, x, batch, trace):
        """Returns the values of a layer in integers, and notes what of its inputs leaves their range."""
        if layer.reads == "values":
            x, outside = self._arithmetic.narrowed(layer, x)
            trace.outside[f"{layer.name}: input"] = outside.reshape(batch, -1).any(1)
        # Sums of whole numbers are exact in any order.
        dtype = np.float32 if layer.is_small else np.float64
        x, weights = x.astype(dtype), layer.weights.astype(dtype)
        if layer.node.op == "dot":
            sums = x @ weights[0, 0]
        else:
            rank = x.ndim - 2
            sums = _convolution(layer.node, x, weights.reshape(weights.shape[-rank - 2 :]), np.matmul)
        return self._arithmetic.from_integers(layer, layer.with_bias(sums.astype(np.int64)))

    def _products(self, node, operands):
        """Returns sums of products in the order of C."""
        sizes = geometry.real_conv(node, self._network.shapes, self._network.constants)
        x = self._arithmetic.begin(operands[0])
        if sizes is None:
            return matrix_product(node, x, self._arithmetic.begin(operands[1]))
        kernel = self._arithmetic.begin(self._arithmetic.kernel(node))
        if node.op == "dot":
            return ordered_sums(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)
        return _convolution(node, x, kernel, ordered_sums)

    def _checked(self, node, x, images, trace):
        """Notes how large a value is, and keeps it within its range."""
        if x.dtype == bool or node.op in operations.VIEWS or self._arithmetic.is_wide(node):
            return x
        low, high = self._arithmetic.limits
        values = x.reshape(images, -1)
        least, most = values.min(1), values.max(1)
        trace.largest[node.name] = np.maximum(-least.astype(np.float64), most)
        # NaN is within no limits.
        inside = (least >= low) & (most <= high)
        trace.outside[node.name] = ~inside
        return np.clip(x, low, high) if x.dtype == np.int64 and not inside.all() else x


def _order(network: Network, arithmetic: Any) -> list[ir.Node]:
    """Returns the nodes that are computed, and the views of them, in the graph's order."""
    live, kept = {network.graph.output}, []
    for node in reversed(network.graph.nodes):
        if node.name in live and node.name not in network.constants:
            live.update(node.inputs if arithmetic.table_of(node) is None else ())
            # A view of a constant is read by others as they read constants.
            if not network.constant_of(node.name):
                kept.append(node)
    return kept[::-1]


def _looked_up(table: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns a table's number `[channels, 256]` for every pixel."""
    return np.stack([row[images[..., c]] for c, row in enumerate(table)], axis=-1)


def _integers(product: geometry.Product) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the packed runtime's integers as a function of signs."""
    words = ir.pack(product.kernels)
    weights = ir.prepare(product.node, words, product.shape)
    node = product.node._replace(attributes={**product.node.attributes, "dtype": "int32"})

    @jax.jit
    def run(x, weights):
        return ir.apply(node, x.shape[0], [x, weights])

    @machine.in_32_bits
    def integers(x: np.ndarray) -> np.ndarray:
        return np.asarray(run(jnp.asarray(x), weights))

    return integers


def _convolution(node: ir.Node, x: np.ndarray, kernel: np.ndarray, product: Product) -> np.ndarray:
    """Returns a convolution by a product of matrices, `[P, I]` and `[I, O]`."""
    a = node.attributes
    padded = np.pad(x, ((0, 0), *a["padding"], (0, 0)))
    size = kernel.shape[:-2]
    spans = [(k - 1) * d + 1 for k, d in zip(size, a["dilation"], strict=True)]
    axes = tuple(range(1, len(size) + 1))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
    steps = tuple(slice(None, None, s) for s in a["strides"])
    taps = tuple(slice(None, None, d) for d in a["dilation"])
    windows = windows[(slice(None), *steps, slice(None), *taps)]
    # [N, H', W', C, KH, KW] to [N, H', W', KH, KW, C].
    rank = len(size)
    windows = np.moveaxis(windows, rank + 1, -1)
    groups = a["groups"]
    inputs, outputs = kernel.shape[-2], kernel.shape[-1] // groups
    found = []
    for g in range(groups):
        part = windows[..., g * inputs : (g + 1) * inputs]
        weights = kernel[..., g * outputs : (g + 1) * outputs].reshape(-1, outputs)
        # Windows overlap: those of one image at a time are copied.
        sums = [product(image.reshape(-1, len(weights)), weights) for image in part]
        found.append(np.stack(sums).reshape(*part.shape[: rank + 1], outputs))
    return np.concatenate(found, axis=-1)


def matrix_product(node: ir.Node, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns any product of matrices, of which the first axis may be the batch's."""
    (of_x, of_y), (batch_x, batch_y) = (node.attributes[k] for k in ("contracting", "batch"))
    free_x = [i for i in range(x.ndim) if i not in (*of_x, *batch_x)]
    free_y = [i for i in range(y.ndim) if i not in (*of_y, *batch_y)]
    terms = math.prod(x.shape[i] for i in of_x)
    first = x.transpose(*of_x, *batch_x, *free_x)
    second = y.transpose(*of_y, *batch_y, *free_y)
    shared = [x.shape[i] for i in batch_x]
    first = first.reshape(terms, *shared, *(x.shape[i] for i in free_x), *(1 for _ in free_y))
    second = second.reshape(terms, *shared, *(1 for _ in free_x), *(y.shape[i] for i in free_y))
    total = np.zeros(np.broadcast_shapes(first.shape[1:], second.shape[1:]), x.dtype)
    for a, b in zip(first, second, strict=True):
        total = total + a * b
    return total


def ordered_sums(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Returns `x @ kernel`, `[P, I]` with `[I, O]`; each sum begins with 0 and adds term after term."""
    sums = np.empty((len(x), kernel.shape[1]), x.dtype)
    step = max(1, _SUMS_AT_ONCE // kernel.shape[1])
    for start in range(0, len(x), step):
        terms = np.ascontiguousarray(x[start : start + step].T)
        total = np.zeros((kernel.shape[1], terms.shape[1]), x.dtype)
        product = np.empty_like(total)
        for term, weights in zip(terms, kernel, strict=True):
            np.multiply(weights[:, None], term, out=product)
            total += product
        sums[start : start + step] = total.T
    return sums


def _total(parts: np.ndarray) -> np.ndarray:
    """Adds arrays up in their order, the first one to 0."""
    return functools.reduce(np.add, parts, np.zeros_like(parts[0]))
