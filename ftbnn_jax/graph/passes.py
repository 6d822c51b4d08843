"""Passes over a graph: products of signs become binary ones, and the classifier's weights 16 bits.

A product is binary where its activations are known to be signs and its kernel holds -1 and +1 alone. No
pattern has to be recognised for that: the signs are whatever the program computes.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ftbnn_jax.graph import ir
from ftbnn_jax.graph.lower import Lowered, Product

_LARGEST = np.iinfo(np.int16).max


@dataclasses.dataclass(frozen=True)
class Line:
    """What became of one product of the network.

    Attributes:
      layer: path of the module it belongs to.
      product: "conv" or "dot".
      kernel: sizes of the second operand.
      form: of the binary product, one of `ops.packed.convolution.FORMS`; "" for one that is not packed.
      reason: why it is not packed, and what to write instead; "" for one that is.
      source: file and line in the user's code.
    """

    layer: str
    product: str
    kernel: tuple[int, ...]
    form: str
    reason: str
    source: str


@dataclasses.dataclass(frozen=True)
class Check:
    """How one binary product is compared with the program's own.

    Attributes:
      node: name of the binary node.
      products: of the program, those that the node computes side by side.
      source: name of the array that holds their activations.
      result: name of the array that holds their results.
      scale: what the node's integers are multiplied with to be the program's; None for nothing.
    """

    node: str
    products: tuple[Product, ...]
    source: str
    result: str
    scale: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Packed:
    """A graph with binary products.

    Attributes:
      graph: what was packed.
      checks: one entry a binary node, in order.
      lines: what became of each product of the network.
      classifier: the product whose weights have 16 bits; None where there is none.
      replaced: layers whose straight-through estimator became the sign it stands for.
    """

    graph: ir.Graph
    checks: tuple[Check, ...]
    lines: tuple[Line, ...]
    classifier: Product | None
    replaced: tuple[str, ...]


def pack(lowered: Lowered, classifier_bits: int = 16, scaled_kernels: bool = False) -> Packed:
    """Packs what can be packed.

    Args:
      lowered: the network.
      classifier_bits: 16 or 32, of the weights of a matrix product that gives the network's result.
      scaled_kernels: whether kernels of -s and +s, one s an output channel, are packed too: as a binary
        product and a multiplication, which rounds elsewhere than the network's own.
    """
    graph, checks, lines = _binary_products(lowered, scaled_kernels)
    graph, checks = _merge_groups(graph, checks)
    classifier = None
    if classifier_bits == 16:
        graph, name = _quantize_classifier(graph)
        classifier = lowered.products.get(name)
    graph = graph.between(graph.input, graph.output)
    return Packed(graph, tuple(checks), tuple(lines), classifier, lowered.replaced)


def quantize(kernel: np.ndarray, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rounds a classifier's weights to multiples of `max |w| / 32767`, one such scale a class.

    Args:
      kernel: float32 `[features, classes]`, or the other way round with an `axis` of 1.
      axis: of the features.

    Returns:
      int16 multiples in the shape of `kernel`, and float32 scales that broadcast to it.
    """
    scale = (np.abs(kernel).max(axis=axis, keepdims=True) / _LARGEST).astype(np.float32)
    # Where the scale has become subnormal, or 0, a multiple can leave 16 bits.
    multiples = np.rint(kernel / np.maximum(scale, np.finfo(np.float32).smallest_subnormal))
    return np.clip(multiples, -_LARGEST, _LARGEST).astype(np.int16), scale


def _binary_products(lowered: Lowered, scaled_kernels: bool) -> tuple[ir.Graph, list[Check], list[Line]]:
    nodes: list[ir.Node] = []
    tensors = dict(lowered.graph.tensors)
    checks, lines = [], []
    for node in lowered.graph.nodes:
        product = lowered.products.get(node.name)
        if product is None:
            nodes.append(node)
            continue
        scale, reason = None, _why_real(product, scaled_kernels)
        if reason:
            nodes.append(node)
        else:
            kernel = product.fixed
            if not _are_signs(kernel):
                scale = _scale(kernel, node).astype(kernel.dtype)
            bits = ir.unused(ir.below(node.layer, "bits"), tensors)
            made, tensors[bits], check = _pack(node, product, bits, scale)
            if scale is not None:
                tensors[f"{node.inputs[1]}/scale"] = scale
            nodes += made
            checks.append(check)
        kind, form = node.op, "" if reason else _form(product)
        kernel_shape = () if product.fixed is None else tuple(product.fixed.shape)
        lines.append(Line(node.layer, kind, kernel_shape, form, reason, product.source))
    return dataclasses.replace(lowered.graph, nodes=tuple(nodes), tensors=tensors), checks, lines


def _are_signs(kernel: np.ndarray) -> bool:
    return bool(((kernel == 1) | (kernel == -1)).all())


def _scale(kernel: np.ndarray, node: ir.Node) -> np.ndarray | None:
    """Returns the s of each output channel where a kernel holds -s and s alone; None elsewhere."""
    if node.op == "dot":
        inner = {*node.attributes["contracting"][1], *node.attributes["batch"][1]}
    else:
        inner = set(range(kernel.ndim - 1))
    if len(inner) != kernel.ndim - 1:
        return None
    largest = np.abs(kernel).max(axis=tuple(sorted(inner)), keepdims=True)
    if not (np.isfinite(largest) & (largest > 0) & (np.abs(kernel) == largest)).all():
        return None
    return largest.reshape(-1)


def _form(product: Product) -> str:
    if -1.0 not in product.x.numbers:
        return "and"
    return "ternary" if 0.0 in product.x.numbers else "xnor"


def _why_real(product: Product, scaled_kernels: bool) -> str:
    """Returns why a product stays one of real numbers, and what would change that; "" if it need not."""
    node, kernel = product.node, product.fixed
    if not product.x.is_sign:
        known = product.x.numbers
        if known is None and (kernel is None or not _are_signs(kernel)):
            return "a product of real numbers; signs of both would do"
        found = "any number" if known is None else " or ".join(f"{n:g}" for n in sorted(known))
        return f"its activations can be {found}; the sign of them would do"
    if kernel is None:
        return "both operands depend on the images; a kernel that is the same for all would do"
    if not _are_signs(kernel):
        if _scale(kernel, node) is None:
            what = "zeros" if (kernel == 0).any() and set(np.unique(kernel)) <= {-1, 0, 1} else "numbers"
            return f"its kernel holds {what} other than -1 and +1; the sign of it would do"
        if not scaled_kernels:
            return "its kernel holds -s and +s; pack(..., scaled_kernels=True) would do, or s after it"
    a = node.attributes
    if node.op == "conv":
        if set(a["input_dilation"]) != {1}:
            return "it is a transposed convolution; zeros put between the inputs beforehand would do"
        if not 1 <= len(a["strides"]) <= 2:
            return f"it has {len(a['strides'])} dimensions; 1 or 2 would do"
        if any(n < 0 for edge in a["padding"] for n in edge):
            return "it cuts its input at the edges; a slice in front of it would do"
    elif len(a["contracting"][0]) + len(a["batch"][0]) == len(product.shape):
        return "it sums over the images; rows of their own would do"
    return ""


def _pack(
    node: ir.Node, product: Product, bits: str, scale: np.ndarray | None
) -> tuple[list[ir.Node], np.ndarray, Check]:
    """Returns the nodes in place of a product, the words of its kernel, and how it is compared."""
    dtype = node.attributes["dtype"]
    if node.op == "conv":
        a = node.attributes
        kernels = np.split(product.fixed > 0, a["groups"], axis=-1)
        attributes = {name: a[name] for name in ("strides", "padding", "dilation")}
        attributes["kernel_size"] = kernels[0].shape[:-2]
        before, after, op = [], [], "binary_conv"
    else:
        before, kernels, after = _dense(node, product)
        attributes, op = {}, "binary_dot"
    attributes |= {
        "form": _form(product),
        "in_features": tuple(k.shape[-2] for k in kernels),
        "out_features": tuple(k.shape[-1] for k in kernels),
        "dtype": dtype,
    }
    chain = [*before, (op, attributes), *after]
    made, x = [], node.inputs[0]
    for i, (step_op, step_attributes) in enumerate(chain):
        last = i == len(chain) - 1
        name = node.name if last else f"{node.name}/{step_op}_{i}"
        inputs = (x, bits) if step_op == op else (x,)
        made.append(ir.Node(name, step_op, inputs, step_attributes, node.layer))
        x = name
    binary = next(n.name for n in made if n.op == op)
    result = made[-1].name
    if scale is not None:
        # The integers keep a name of their own, and the network's result its own.
        integers = f"{node.name}/integers"
        made[-1] = made[-1]._replace(name=integers)
        binary, result = integers if binary == result else binary, integers
        scale = scale.reshape((1,) * (len(product.shape) - 1) + (-1,)) if node.op == "conv" else scale
        made.append(ir.Node(node.name, "mul", (integers, f"{node.inputs[1]}/scale"), {}, node.layer))
    return made, ir.pack(kernels), Check(binary, (product,), node.inputs[0], result, scale)


def _dense(node: ir.Node, product: Product):
    """Returns what brings a product of matrices into rows of groups, its kernels, and what undoes it."""
    (of_x, of_kernel), (batch_x, batch_kernel) = (node.attributes[k] for k in ("contracting", "batch"))
    kernel, shape = product.fixed, product.shape
    free_x = [i for i in range(len(shape)) if i not in of_x + batch_x]
    free_kernel = [i for i in range(kernel.ndim) if i not in of_kernel + batch_kernel]
    groups = math.prod(kernel.shape[i] for i in batch_kernel)
    inner = math.prod(kernel.shape[i] for i in of_kernel)
    ordered = (kernel > 0).transpose(*batch_kernel, *of_kernel, *free_kernel)
    kernels = list(ordered.reshape(groups, inner, -1))
    rows = tuple(shape[i] for i in free_x)
    outer = (*(kernel.shape[i] for i in batch_kernel), *(kernel.shape[i] for i in free_kernel))
    before = _steps((*free_x, *batch_x, *of_x), (*rows, groups * inner), shape)
    spread = (*rows, *outer)
    r, g = len(rows), len(batch_kernel)
    back = (*range(r, r + g), *range(r), *range(r + g, len(spread)))
    after = []
    if len(outer) != 1:
        after.append(("reshape", {"shape": spread}))
    if back != tuple(range(len(spread))):
        after.append(("transpose", {"permutation": back}))
    return before, kernels, after


def _steps(permutation: tuple[int, ...], wanted: tuple[int, ...], shape: Sequence[int]):
    steps = []
    if permutation != tuple(range(len(shape))):
        steps.append(("transpose", {"permutation": permutation}))
    if wanted != tuple(shape[i] for i in permutation):
        steps.append(("reshape", {"shape": wanted}))
    return steps


def _merge_groups(graph: ir.Graph, checks: list[Check]) -> tuple[ir.Graph, list[Check]]:
    """Turns products of neighbouring channels, concatenated, into one product in groups."""
    nodes = {node.name: node for node in graph.nodes}
    by_node = {check.node: check for check in checks}
    tensors = dict(graph.tensors)
    channels = {name: s.shape[-1] for name, s in graph.shapes().items() if s.shape}
    readers = collections.Counter(name for node in graph.nodes for name in node.inputs)
    for node in graph.nodes:
        parts = [nodes.get(name) for name in node.inputs]
        if node.op != "concatenate" or any(readers[name] > 1 for name in node.inputs):
            continue
        if not _are_groups(node, parts, nodes, channels):
            continue
        one = dict(parts[0].attributes)
        for key in ("in_features", "out_features"):
            one[key] = tuple(n for p in parts for n in p.attributes[key])
        kernels = [k for p in parts for k in ir.unpack(p.attributes, tensors[p.inputs[1]])]
        # The first group's name: the words of the groups one by one are not read any more.
        bits = parts[0].inputs[1]
        tensors[bits] = ir.pack(kernels)
        source = nodes[parts[0].inputs[0]].inputs[0]
        nodes[node.name] = ir.Node(node.name, "binary_conv", (source, bits), one, parts[0].layer)
        products = tuple(q for p in parts for q in by_node.pop(p.name).products)
        by_node[node.name] = Check(node.name, products, source, node.name)
    graph = dataclasses.replace(graph, nodes=tuple(nodes.values()), tensors=tensors)
    return graph, [by_node[node.name] for node in graph.nodes if node.name in by_node]


def _are_groups(node, parts, nodes, channels) -> bool:
    """Whether a node puts side by side what binary convolutions make of an array's channels in order."""
    if not all(part is not None and part.op == "binary_conv" for part in parts):
        return False
    slices = [nodes.get(part.inputs[0]) for part in parts]
    if not all(s is not None and s.op == "slice" and s.inputs == slices[0].inputs for s in slices):
        return False
    geometry = [
        {k: v for k, v in part.attributes.items() if k not in ("in_features", "out_features")}
        for part in parts
    ]
    start = 0
    for s in slices:
        a = s.attributes
        whole = set(a["start"][:-1]) == {0} and set(a["strides"]) == {1} and a["start"][-1] == start
        if not whole or a["limit"][:-1] != slices[0].attributes["limit"][:-1]:
            return False
        start = a["limit"][-1]
    last = node.attributes["axis"] == len(slices[0].attributes["start"]) - 1
    return last and start == channels[slices[0].inputs[0]] and all(g == geometry[0] for g in geometry)


def _quantize_classifier(graph: ir.Graph) -> tuple[ir.Graph, str]:
    """Stores the kernel of the product that gives the result in 16 bits; returns the product's name."""
    nodes = {node.name: node for node in graph.nodes}
    node = nodes.get(graph.output)
    while node is not None and node.op in ("add", "reshape", "cast"):
        (node, *others) = [nodes[n] for n in node.inputs if n in nodes] or [None]
        if others:
            return graph, ""
    if node is None or node.op != "dot" or node.attributes["batch"] != ((), ()):
        return graph, ""
    kernel, contracting = graph.tensors.get(node.inputs[1]), node.attributes["contracting"][1]
    if kernel is None or kernel.ndim != 2 or kernel.dtype != np.float32 or len(contracting) != 1:
        return graph, ""
    name = node.inputs[1]
    multiples, scale = quantize(kernel, contracting[0])
    tensors = {**graph.tensors, f"{name}/int16": multiples, f"{name}/scale": scale}
    cast = ir.Node(f"{name}/cast", "cast", (f"{name}/int16",), {"dtype": "float32"}, node.layer)
    mul = ir.Node(f"{name}/mul", "mul", (cast.name, f"{name}/scale"), {}, node.layer)
    nodes[node.name] = node._replace(inputs=(node.inputs[0], mul.name))
    made = []
    for old in graph.nodes:
        made += [cast, mul, nodes[old.name]] if old.name == node.name else [old]
    return dataclasses.replace(graph, nodes=tuple(made), tensors=tensors), node.name
