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
from collections.abc import Mapping
from typing import Any

import numpy as np

from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy.c import geometry, views
from ftbnn_jax.deploy.c.geometry import Product
from ftbnn_jax.deploy.c.views import View
from ftbnn_jax.graph import ir

# A copy of an array of a graph, in order, for who cannot read it in another one.
COPY = "copy"


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
      real_bits: of real convolutions' weights, as `integer_layers` has them; 32 for real numbers.
      layers: those in integers, `integer_layers.IntegerLayer` by the name of their node.
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
    real_bits: int = 32
    layers: Mapping[str, Any] = dataclasses.field(default_factory=dict)

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
        return shapes_of(self.graph, self.constants)

    @property
    def results(self) -> int:
        """Numbers that the network gives for an image."""
        return math.prod(self.shapes[self.graph.output].shape)

    def view(self, name: str) -> View:
        """Returns how an array is read."""
        return views.view_of(self.nodes, self.shapes, self._computed, name)

    def constant_of(self, name: str) -> str:
        """Returns the constant that an array is a view of; "" if it is of none."""
        if name not in self.shapes:
            return ""
        root = self.view(name).root
        return root if root in self.constants else ""

    def is_integer(self, node: ir.Node) -> bool:
        """Whether a node is a layer in integers."""
        return self.real_bits < 32 and geometry.is_layer(node, self.shapes, self.constants)

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
        others = ("logits", "wide", "narrow")
        elements = sum(count for pool, count in self.sizes.items() if pool not in others)
        narrow = -(-self.sizes["narrow"] // 2)
        # Sums may have 8 bytes each. A magic number, a count, and two pointers, whose size and alignment
        # is at most 8.
        return 4 * (elements + narrow) + 8 * wide + 48


def shapes_of(graph: ir.Graph, constants) -> dict[str, Any]:
    """Returns shape and dtype of every array, constants among them, for one image."""
    found = dict(graph.shapes())
    for name, array in constants.items():
        found.setdefault(name, array)
    return found


def layers(loop: Loop) -> str:
    """Returns what a loop does, for a comment."""
    names = collections.Counter(node.layer for node in loop.results() if node.layer)
    operations_of = ", ".join(dict.fromkeys(node.op for node in loop.results()))
    where = names.most_common(1)[0][0] if names else "the network"
    return f"{where}: {operations_of} -> {'x'.join(map(str, loop.shape[1:] or loop.shape))}"
