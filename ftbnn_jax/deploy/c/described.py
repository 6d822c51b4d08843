"""What the C program needs of an artifact: the one place in `deploy.c` that reads a graph.

The program is written for the networks that a `Architecture` describes. The graph of such a network has
its constants in layers and operations that follow from the spec: here they are found, checked, named.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir
from ftbnn_jax.nn import strategies
from ftbnn_jax.nn.spec import Architecture, BinaryConvPlan
from ftbnn_jax.ops import binary
from ftbnn_jax.ops.conv import geometry
from ftbnn_jax.ops.packed import bits
from ftbnn_jax.ops.preprocessing import Preprocessing

# Operations whose constants make a network, and those that only hand a constant on.
_READ_CONSTANTS = ("conv", "mul", "add", "max", "select", "dot", *ir.BINARY)
_HAND_ON = ("broadcast", "cast", "reshape")
_ONLY = "the C program is written for networks of config.model"

# By layer and operation: name, dtype and shape of each constant; "" for a ReLU's 0.
_Constants = dict[tuple[str, str], list[tuple[str, type, tuple[int, ...]]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Convolution:
    """A binary convolution.

    Attributes:
      part: the graph from the real activations, of which it takes the signs, to its integers.
    """

    part: ir.Graph

    @property
    def source(self) -> str:
        """Name of the real activations among the whole graph's arrays."""
        return self.part.input

    @property
    def result(self) -> str:
        """Name of the integers, likewise."""
        return self.part.output

    @property
    def size(self) -> int:
        """Height and width of the input."""
        return self.part.shape[1]

    @property
    def node(self) -> ir.Node:
        """The convolution itself."""
        return self.part.nodes[-1]

    @property
    def form(self) -> str:
        """One of `ops.packed.convolution.FORMS`."""
        return self.node.attributes["form"]

    def kernels(self) -> list[np.ndarray]:
        """Returns booleans `[3, 3, I_g, O_g]`, True for +1, one array a group."""
        return ir.unpack(self.node.attributes, self.part.tensors[self.node.inputs[1]])

    def integers(self, x: np.ndarray) -> np.ndarray:
        """Returns the packed runtime's integers, int32 `[N, H', W', O]`.

        Args:
          x: real activations, or their signs, float32 `[N, H, W, I]`.
        """
        return np.asarray(self._runtime(x)).astype(np.int32)

    @functools.cached_property
    def _runtime(self) -> runtime_lib.Runtime:
        return runtime_lib.Runtime(artifact_lib.Artifact(self.part))


@dataclasses.dataclass(frozen=True, eq=False)
class Described:
    """A network that there can be in C.

    Attributes:
      spec: what it is.
      num_classes: number of logits.
      preprocessing: how an image becomes the network's pixels.
      class_names: one name a class of the training data.
      step: training step of the checkpoint.
      tensors: the constants by name: `stem/conv/kernel`, `head/kernel` (int16), `head/scale` and
        `head/bias`; of a block `conv/bits` (words) and `shortcut_conv/kernel`; of each batch norm, as
        `stem/bn`, `multiplier` and `offset`, `[C]`; of an activation, as `stem/act`, its
        `negative_slope` and `positive_slope`, `[C]`.
      convolutions: the binary ones, as `spec.plan()` has them.
    """

    spec: Architecture
    num_classes: int
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    step: int
    tensors: dict[str, np.ndarray]
    convolutions: tuple[Convolution, ...]


def describe(artifact: artifact_lib.Artifact) -> Described:
    """Finds in an artifact what the C program needs.

    Raises:
      UserError: no spec describes the network, its graph is not the spec's, or C has no such layer.
    """
    spec, graph, rule = artifact.spec, artifact.graph, artifact.preprocessing
    if spec is None or rule is None:
        raise UserError(f"{_ONLY}; this one was packed from a function, and ftbnn_jax.load runs it")
    _require_layers_of_c(spec)
    nodes, shapes = {node.name: node for node in graph.nodes}, graph.shapes()

    def part(source: str, result: str) -> ir.Graph:
        """The graph between two arrays, ready to be a network of its own."""
        shape, dtype = (ir.BATCH, *shapes[source].shape[1:]), shapes[source].dtype.name
        return dataclasses.replace(graph.between(source, result), shape=shape, dtype=dtype)

    convolutions = tuple(
        Convolution(part(_before_signs(nodes, graph.tensors, product), product.name))
        for product in graph.binary_products()
    )
    of_signs = {n.name for conv in convolutions for n in conv.part.nodes[:-1]}
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for node in graph.nodes:
        if node.op in _READ_CONSTANTS and node.name not in of_signs:
            names = [_handed_on(nodes, name) for name in node.inputs]
            constants = [graph.tensors[name] for name in names if name in graph.tensors]
            if constants:
                found.setdefault((node.layer, node.op), []).extend(constants)
    classes = shapes[graph.output].shape[-1]
    tensors = _named(found, _constants(spec, rule.channels, classes))
    _check_convolutions(spec, graph.shape[1], convolutions)
    stem = next(node for node in graph.nodes if node.op == "conv")
    _check_pixels(rule, part(graph.input, stem.inputs[0]))
    return Described(spec, classes, rule, artifact.class_names, artifact.step, tensors, convolutions)


def _require_layers_of_c(spec: Architecture) -> None:
    if spec.scaling in strategies.FROM_INPUT:
        foldable = [s for s in strategies.SCALINGS if s not in strategies.FROM_INPUT]
        raise UserError(
            f"model.scaling={spec.scaling!r}: the C program has no factors that depend on the input; "
            f"the packed runtime has; {', '.join(foldable)} would do"
        )
    if spec.head != "mean":
        raise UserError(f"model.head={spec.head!r}: the C program has 'mean' alone")


def _not_the_specs(what: str) -> UserError:
    return UserError(f"{_ONLY}; this graph is not that of its spec: {what}")


def _before_signs(
    nodes: dict[str, ir.Node], constants: Mapping[str, np.ndarray], product: ir.Node
) -> str:
    """Returns the name of what a product's signs are taken of: what all their comparisons read."""
    found, waiting = set(), [product.inputs[0]]
    while waiting:
        node = nodes.get(waiting.pop())
        if node is not None and node.op == "compare":
            found.add(node.inputs[0])
        elif node is not None:
            waiting += node.inputs
    if len(found) != 1 or found <= constants.keys():
        raise _not_the_specs(
            f"{product.layer or 'the network'}: a sign of one array expected, found another"
        )
    return found.pop()


def _handed_on(nodes: dict[str, ir.Node], name: str) -> str:
    """Returns the name of what a name stands for, but for its shape and dtype."""
    while name in nodes and nodes[name].op in _HAND_ON:
        name = nodes[name].inputs[0]
    return name


def _constants(spec: Architecture, channels: int, num_classes: int) -> _Constants:
    """Returns the constants of a spec's network, where its graph has them."""
    real = np.float32
    found: _Constants = {
        ("head", "mul"): [
            ("head/kernel", np.int16, (spec.features, num_classes)),
            ("head/scale", real, (num_classes,)),
        ],
        ("head", "add"): [("head/bias", real, (num_classes,))],
    }

    def kernel(layer: str, *shape: int) -> None:
        found[layer, "conv"] = [(f"{layer}/kernel", real, shape)]

    def norm(layer: str, features: int) -> None:
        found[layer, "mul"] = [(f"{layer}/multiplier", real, (features,))]
        found[layer, "add"] = [(f"{layer}/offset", real, (features,))]

    def activation(layer: str, name: str, kind: str, features: int) -> None:
        negative, positive = (
            (f"{name}/act/{s}_slope", real, (features,)) for s in ("negative", "positive")
        )
        if kind == "relu":
            found[layer, "max"] = [("", real, ())]
        elif kind == "prelu":
            found[layer, "mul"] = [negative]
        elif kind == "fprelu":
            found[layer, "select"] = [negative, positive]

    kernel("stem/conv", spec.stem_kernel, spec.stem_kernel, channels, spec.stem_features)
    norm("stem/bn", spec.stem_features)
    activation("stem/act", "stem", spec.stem_activation, spec.stem_features)
    for plan in spec.plan():
        pairs = zip(*_groups(plan).values(), strict=True)
        words = bits.words_for(sum(9 * i * o for i, o in pairs))
        found[f"{plan.name}/conv", "binary_conv"] = [(f"{plan.name}/conv/bits", np.uint32, (words,))]
        norm(f"{plan.name}/bn", plan.features)
        activation(plan.name, plan.name, plan.activation, plan.features)
        if plan.shortcut == "conv":
            kernel(f"{plan.name}/shortcut_conv", 1, 1, plan.in_features, plan.features)
            norm(f"{plan.name}/shortcut_bn", plan.features)
    return found


def _groups(plan: BinaryConvPlan) -> dict[str, tuple[int, ...]]:
    return {
        "in_features": binary.group_sizes(plan.conv_in_features, plan.groups),
        "out_features": binary.group_sizes(plan.features, plan.groups),
    }


def _named(found: dict[tuple[str, str], list[np.ndarray]], wanted: _Constants) -> dict[str, np.ndarray]:
    """Returns constants by name, in the shapes that the spec gives; a graph's may begin with ones."""
    tensors = {}
    for place in sorted({*found, *wanted}):
        arrays, entries = found.get(place, []), wanted.get(place, [])
        expected = [_kind(dtype, shape) for _, dtype, shape in entries]
        there = [_kind(array.dtype, array.shape) for array in arrays]
        if there != expected:
            layer, op = place
            raise _not_the_specs(
                f"{layer or 'the network'}: {op} of {', '.join(expected) or 'no constant'} expected, "
                f"found {', '.join(there) or 'none'}"
            )
        for (name, _, shape), array in zip(entries, arrays, strict=True):
            tensors[name] = array.reshape(shape)
    tensors.pop("", None)
    return tensors


def _kind(dtype: type, shape: Sequence[int]) -> str:
    """Returns dtype and shape, but for axes of one element in front, which broadcasting adds."""
    return f"{np.dtype(dtype)} {list(itertools.dropwhile(lambda n: n == 1, shape))}"


def _check_convolutions(spec: Architecture, size: int, convolutions: Sequence[Convolution]) -> None:
    half = (spec.stem_kernel // 2,) * 2
    size = geometry.output_size(size, spec.stem_kernel, spec.stem_stride, half)
    size = -(-size // 2) if spec.stem_pool else size
    for plan, conv in zip(spec.plan(), convolutions, strict=True):
        wanted = {"layer": f"{plan.name}/conv", "shape": (ir.BATCH, size, size, plan.conv_in_features)}
        wanted |= {"kernel_size": (3, 3), "strides": (plan.stride,) * 2, **_groups(plan)}
        wanted |= {"padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
        found = {"layer": conv.node.layer, "shape": conv.part.shape, **conv.node.attributes}
        for name, value in wanted.items():
            if found[name] != value:
                raise _not_the_specs(f"{plan.name}/conv: {name} {value} expected, found {found[name]}")
        size = -(-size // plan.stride)


def _check_pixels(rule: Preprocessing, part: ir.Graph) -> None:
    """Raises a UserError unless a network standardises its pixels as its preprocessing says."""
    if (part.dtype, part.shape[1:]) != ("uint8", rule.shape):
        raise _not_the_specs(
            f"uint8 {list(rule.shape)} expected as its images, found {part.dtype} {list(part.shape[1:])}"
        )
    rows, columns, channels = part.shape[1:]
    values = np.resize(np.arange(256, dtype=np.uint8), (-(-256 // (rows * columns)), rows, columns, 1))
    expected = (values - np.float32(rule.mean)) / np.float32(rule.std)
    pixels = np.broadcast_to(values, (*values.shape[:-1], channels))
    found = runtime_lib.Runtime(artifact_lib.Artifact(part))(pixels)
    if not np.allclose(found, expected, rtol=1e-5, atol=0):
        raise _not_the_specs(f"its pixels are not standardised as {rule}")
