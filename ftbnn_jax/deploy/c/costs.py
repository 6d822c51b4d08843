"""What each loop of the C program has to do, in units whose time a device's table knows."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ftbnn_jax.deploy.c import functions, geometry, operations, schedule
from ftbnn_jax.deploy.c.geometry import BLOCK, Product
from ftbnn_jax.deploy.c.schedule import Loop, Network
from ftbnn_jax.graph import ir
from ftbnn_jax.ops.packed import bits

# Unit, and what one is. A table has the time of each.
UNITS = {
    "loop": "a loop, whatever it does",
    "row": "a position, whatever is computed there",
    "word": "32 signs times 32 weights, counted, for one output",
    "masked_word": "likewise, where an input is 0 or lies outside of the image",
    "gathered_word": "a word of a window, brought together",
    "tap": "a position of a window, found",
    "group": "a group of channels at one position",
    "real_product": "a multiply-add of a real convolution",
    "dense_product": "a multiply-add of a product of matrices",
    "windowed": "a value that a window or a reduction reads",
    "copied": "a value that is copied: joined, padded, looked up",
    "elementwise": "an addition, a multiplication, a comparison of one value",
    "function": "a division or a function like exp of one value",
    "packed": "a value whose sign becomes a bit",
}
_FUNCTIONS = ("div", *functions.FUNCTIONS)


def count(network: Network, loop: Loop, lanes: int) -> dict[str, int]:
    """Returns how many of each unit a loop has for one image, by name, where it has any.

    Args:
      network: the loop's.
      loop: one of its loops.
      lanes: output channels that a device's kernels compute together: as many are computed at least.
    """
    elements = math.prod(loop.shape)
    found = {"loop": 1, "row": loop.positions}
    for node in loop.nodes:
        unit = "function" if node.op in _FUNCTIONS else "elementwise"
        unit = "copied" if node.op == schedule.COPY else unit
        found[unit] = found.get(unit, 0) + elements
    found["packed"] = elements * len(loop.packs)
    if loop.kernel is not None:
        found |= _kernel(network, loop, loop.kernel, lanes)
    return {unit: number for unit, number in found.items() if number}


def time(counts: Mapping[str, int], rates: Mapping[str, float]) -> float:
    """Returns what counts take by the rates of their units; what has no rate takes no time."""
    return sum(rates.get(unit, 0.0) * number for unit, number in counts.items())


def _kernel(network: Network, loop: Loop, kernel: ir.Node, lanes: int) -> dict[str, int]:
    elements = math.prod(loop.shape)
    if kernel.op in ir.BINARY:
        (product,) = (p for p in network.products if p.node.name == kernel.name)
        return of_product(product, lanes)
    if kernel.op in ("conv", "dot"):
        return _real(network, kernel, elements, lanes)
    if kernel.op in (*operations.FOLDS, "argmax"):
        return {"windowed": elements * _window(network, kernel)}
    return {"copied": elements}


def of_product(product: Product, lanes: int) -> dict[str, int]:
    """Returns the same of a binary product by itself, without what follows it in its loop."""
    words = window = 0
    for inputs, outputs in zip(product.group_inputs, product.group_outputs, strict=True):
        of_group = product.taps * (inputs // 32) + bits.words_for(product.taps * (inputs % 32))
        window += of_group
        words += of_group * _rounded_up(outputs, lanes)
    # Positions are computed in blocks; the last one is filled up.
    blocks = -(-product.positions // BLOCK)
    # What lies outside is 0 like others where signs are 0 and 1.
    edge = 0 if product.form == "and" else _blocks_at_edges(product)
    # Which inputs are not 0 is gathered too, where some may be.
    twice = blocks if product.form == "ternary" else edge
    return {
        "word": BLOCK * (blocks - edge) * words,
        "masked_word": BLOCK * edge * words,
        "gathered_word": BLOCK * (blocks + twice) * window,
        "tap": BLOCK * blocks * product.taps,
        "group": BLOCK * blocks * len(product.group_inputs),
    }


def _blocks_at_edges(product: Product) -> int:
    """Returns how many blocks of positions have a window that reaches out of the image."""
    conv = product.geometry
    axes = zip(
        product.plane_shape,
        product.out_shape,
        *(conv.kernel_size, conv.strides, conv.dilation, conv.padding),
        strict=True,
    )
    inside = np.ones((1, 1), bool)
    for size, out, kernel, stride, dilation, (low, _) in axes:
        first = np.arange(out) * stride - low
        within = (first >= 0) & (first + (kernel - 1) * dilation < size)
        inside = (inside.reshape(-1, 1) & within).reshape(1, -1)
    flat = inside.reshape(-1)
    starts = range(0, len(flat), BLOCK)
    return sum(not flat[start : start + BLOCK].all() for start in starts)


def _real(network: Network, kernel: ir.Node, elements: int, lanes: int) -> dict[str, int]:
    sizes: dict[str, Any] | None = geometry.real_conv(kernel, network.shapes, network.constants)
    if sizes is None:
        x = network.shapes[kernel.inputs[0]].shape
        terms = math.prod(x[axis] for axis in kernel.attributes["contracting"][0])
        return {"dense_product": elements * terms}
    terms = sizes["kernel_height"] * sizes["kernel_width"] * sizes["channels"] // sizes["groups"]
    outputs = sizes["features"] // sizes["groups"]
    computed = elements // outputs * _rounded_up(outputs, lanes) * terms
    return {"dense_product" if kernel.op == "dot" else "real_product": computed}


def _window(network: Network, kernel: ir.Node) -> int:
    """Returns how many values each result of a window or a reduction is made of."""
    a = kernel.attributes
    if "window" in a:
        return math.prod(a["window"])
    shape = network.shapes[kernel.inputs[0]].shape
    return math.prod(shape[axis] for axis in a.get("axes", (a.get("axis"),)))


def _rounded_up(number: int, to: int) -> int:
    return -(-number // to) * to
