"""What each loop of the C program does, for a profile of its time: `ftbnn_loops` in model.c."""

import math
from typing import NamedTuple

from ftbnn_jax.deploy.c import schedule, tables
from ftbnn_jax.deploy.c.elementwise import computed
from ftbnn_jax.deploy.c.schedule import Loop, Network
from ftbnn_jax.graph import ir

_KINDS = {
    **dict.fromkeys(ir.BINARY, "binary product"),
    **dict.fromkeys(("conv", "dot"), "real product"),
    **dict.fromkeys(("window_sum", "window_max"), "window"),
    **dict.fromkeys(("reduce_sum", "reduce_max", "argmax"), "reduction"),
}


class Description(NamedTuple):
    """One loop, in the order of the fields of `ftbnn_loop`.

    Attributes:
      layer: of the network; of a loop without a kernel, that of its first operation.
      parts: what it does: its kernel, then "elementwise" and "packing" where it goes on with them.
      operations: the graph's, in order.
      binary_multiply_adds: for one image.
      real_multiply_adds: likewise.
      elements: of all its rows.
      elementwise: operations on elements, all together.
      packed: elements whose signs become bits, once for each product that reads them.
    """

    layer: str
    parts: str
    operations: str
    binary_multiply_adds: int
    real_multiply_adds: int
    elements: int
    elementwise: int
    packed: int


def describe(network: Network) -> list[Description]:
    """Returns what each loop of a network does, in order."""
    return [_describe(network, loop) for loop in network.loops]


def _describe(network: Network, loop: Loop) -> Description:
    elements = math.prod(loop.shape)
    done = computed(network, loop)
    kernel = loop.kernel
    nodes = [node for node in loop.nodes if node.op != schedule.COPY and node.name in done]
    parts = [_KINDS.get(kernel.op, "copy")] if kernel else []
    parts += ["copy"] if any(node.op == schedule.COPY for node in loop.nodes) else []
    parts += ["elementwise"] if nodes else []
    parts += ["packing"] if loop.packs else []
    products = {product.node.name: product for product in network.products}
    binary = products[kernel.name].multiply_adds if kernel and kernel.op in ir.BINARY else 0
    real = 0
    if kernel and kernel.op in ("conv", "dot"):
        real = elements * _terms(network, kernel)
    return Description(
        next((node.layer for node in loop.results() if node.layer), "the network"),
        ", ".join(parts),
        ", ".join(node.op for node in loop.results() if node is kernel or node.name in done),
        binary,
        real,
        elements,
        elements * len(nodes),
        elements * len(loop.packs),
    )


def _terms(network: Network, product: ir.Node) -> int:
    """Returns how many products a sum of a real product has."""
    x, kernel = (network.shapes[name].shape for name in product.inputs)
    if product.op == "conv":
        return math.prod(kernel[:-1])
    return math.prod(x[axis] for axis in product.attributes["contracting"][0])


def table(network: Network) -> str:
    """Returns the initialisers of `ftbnn_loops`."""
    lines = []
    for loop in describe(network):
        texts = [tables.string(text) for text in loop[:3]]
        numbers = [f"{number}u" if number < 2**32 else f"{number}ull" for number in loop[3:]]
        lines.append(f"    {{{', '.join(texts)},\n     {', '.join(numbers)}}},\n")
    return "".join(lines)
