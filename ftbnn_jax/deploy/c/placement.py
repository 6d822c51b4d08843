"""Where the arrays lie that loops store: lifetimes, results over what is read, scratch memory."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ftbnn_jax.deploy.c import geometry, memory, operations
from ftbnn_jax.deploy.c.geometry import BLOCK, SLACK, Product
from ftbnn_jax.deploy.c.schedule import Loop, Place
from ftbnn_jax.deploy.c.views import View
from ftbnn_jax.graph import ir


@dataclasses.dataclass(frozen=True)
class Placement:
    """What decides where arrays lie.

    Attributes:
      loops: in order.
      reads: names of what each of them reads that another one stores.
      loop_of: index of the loop that computes a result.
      products: the binary ones, in order.
      packed_in: index of the loop that writes the signs of each.
      views: how a node reads an array, by the names of both.
      shapes: of all arrays, by name.
      constants: by name.
      result: name of what the network gives.
      operands: gives the arrays that a node reads, but for kernels.
      real_bits: of real convolutions' weights.
    """

    loops: Sequence[Loop]
    reads: Sequence[set[str]]
    loop_of: dict[str, int]
    products: Sequence[Product]
    packed_in: Sequence[int]
    views: dict[tuple[str, str], View]
    shapes: dict[str, Any]
    constants: dict[str, np.ndarray]
    result: str
    operands: Callable[[ir.Node], tuple[str, ...]]
    real_bits: int

    def run(self) -> tuple[dict[str, Place], tuple[int, ...], dict[str, int]]:
        """Notes what loops store.

        Returns:
          Places of what is stored, offsets of the products' signs, and the sizes of the pools, as
          `schedule.Network` has them.
        """
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
                free = self._only_read_by_kernel(loop, root) and _overtaken(loop.kernel, self.shapes)
            else:
                free = self._read_in_place(loop, root)
            if free:
                return root
        return ""

    def _kernel_reads(self, loop: Loop, root: str) -> bool:
        kernel = loop.kernel
        if kernel is None or kernel.op in ir.BINARY:
            return False
        return any(self.views[kernel.name, name].root == root for name in self.operands(kernel))

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
        values, wide, sums, windows, narrow = [1], [1], [1], [1], [1]
        for product in self.products:
            windows.append(product.windows)
            sums.append(BLOCK * (product.features + SLACK))
        for loop in self.loops:
            row = loop.width
            packing = (row + SLACK) * len({product.node.inputs[0] for product in loop.packs})
            kernel = loop.kernel
            needed = 0
            if kernel is not None and kernel.op in ("conv", "dot"):
                sizes = geometry.real_conv(kernel, self.shapes, self.constants)
                if sizes is None:
                    wide.append(row)
                    needed = BLOCK * row
                else:
                    rows = sizes["kernel_height"] * sizes["row_width"] * sizes["channels"]
                    if self.real_bits < 32:
                        narrow.append(rows + SLACK)
                        sums.append(BLOCK * (row + SLACK))
                    else:
                        needed = BLOCK * row + rows
            elif kernel is not None and kernel.op not in ir.BINARY:
                needed = row
                if self.shapes[kernel.name].dtype.name not in operations.REAL:
                    sums.append(row)
                if kernel.op in ("window_sum", "reduce_sum"):
                    wide.append(row)
            values.append(needed + packing)
        return {
            "scratch": max(values),
            "wide": max(wide),
            "sums": max(sums),
            "windows": max(windows),
            "narrow": max(narrow),
        }


def _overtaken(node: ir.Node, shapes) -> bool:
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
