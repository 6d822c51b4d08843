"""The products of a network alone, in 8 bits: what an int8 runtime would take at the least.

Every product, binary or not, is a `QLinearConv` or a `QLinearMatMul` of uint8 with int8; sums of two
branches, pools and concatenations are those of 8 bits as well. Batch norms, activations and signs are
left out, so that the numbers mean nothing: they would only make it slower.
"""

import math
from typing import Any

import numpy as np

from ftbnn_jax import extras
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir

with extras.named():
    import onnx
    from onnx import TensorProto, helper, numpy_helper

_OPSETS = (("", 18), ("com.microsoft", 1))
_IR_VERSION = 10
_MICROSOFT = "com.microsoft"


def model(graph: ir.Graph) -> onnx.ModelProto:
    """Returns the chain of a network of images `[N, H, W, C]`, from uint8 pixels to uint8 results.

    Raises:
      UserError: an operation is none of the paper's networks.
    """
    return _Chain(graph).finish()


class _Chain:
    """Nodes and constants of the model."""

    def __init__(self, graph: ir.Graph):
        self._graph = graph
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._shapes = graph.shapes()
        # What stands for an activation of the graph; all else is the same for all images.
        self._names = {graph.input: self._add("Transpose", ["images"], perm=[0, 3, 1, 2])}
        self._scale = self._constant(np.float32(1 / 64))
        self._zero, self._zero_weight = self._constant(np.uint8(128)), self._constant(np.int8(0))
        for node in graph.nodes:
            operands = list(dict.fromkeys(self._names[n] for n in node.inputs if n in self._names))
            if operands:
                self._names[node.name] = self._emit(node, operands)

    def finish(self) -> onnx.ModelProto:
        """Returns the model."""
        graph = self._graph
        info = helper.make_tensor_value_info("images", TensorProto.UINT8, [1, *graph.shape[1:]])
        result = helper.make_tensor_value_info(self._names[graph.output], TensorProto.UINT8, None)
        made = helper.make_graph(self._nodes, "chain", [info], [result], self._constants)
        opsets = [helper.make_opsetid(*opset) for opset in _OPSETS]
        return helper.make_model(made, opset_imports=opsets, ir_version=_IR_VERSION)

    def _add(self, op: str, inputs: list[str], domain: str = "", **attributes: Any) -> str:
        name = f"x{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [name], domain=domain, **attributes))
        return name

    def _constant(self, value: Any) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _quantized(self, x: str) -> list[str]:
        return [x, self._scale, self._zero]

    def _emit(self, node: ir.Node, operands: list[str]) -> str:
        a, x = node.attributes, operands[0]
        if node.op in ("conv", "binary_conv"):
            return self._conv(node, x)
        if node.op in ("dot", "binary_dot"):
            return self._dot(node, x)
        if node.op in ("window_max", "window_sum"):
            low, high = zip(*a["padding"][1:3], strict=True)
            sizes = {
                "kernel_shape": a["window"][1:3],
                "strides": a["strides"][1:3],
                "pads": [*low, *high],
            }
            if node.op == "window_max":
                return self._add("MaxPool", [x], **sizes)
            return self._add(
                "QLinearAveragePool", [*self._quantized(x), self._scale, self._zero], _MICROSOFT, **sizes
            )
        if node.op == "reduce_sum":
            pooled = [*self._quantized(x), self._scale, self._zero]
            return self._add("Flatten", [self._add("QLinearGlobalAveragePool", pooled, _MICROSOFT)])
        if node.op == "concatenate":
            inputs = [part for name in node.inputs for part in self._quantized(self._names[name])]
            return self._add("QLinearConcat", [self._scale, self._zero, *inputs], _MICROSOFT, axis=1)
        if node.op == "slice":
            return self._cut(x, a["start"][-1], a["limit"][-1])
        if node.op in ("reshape", "broadcast") or len(operands) == 1:
            return x
        if node.op == "add":
            inputs = [part for name in operands for part in self._quantized(name)]
            return self._add("QLinearAdd", [*inputs, self._scale, self._zero], _MICROSOFT)
        raise UserError(f"{node.layer or 'the network'}: {node.op}: no operation of the chain in 8 bits")

    def _cut(self, x: str, first: int, last: int) -> str:
        ends = [self._constant(np.array([n], np.int64)) for n in (first, last, 1)]
        return self._add("Slice", [x, *ends])

    def _conv(self, node: ir.Node, x: str) -> str:
        a = node.attributes
        if node.op == "conv":
            kernel = (self._shapes.get(node.inputs[1]) or self._graph.tensors[node.inputs[1]]).shape
            groups, size = a["groups"], kernel[:2]
            inputs, outputs = (kernel[2],) * groups, (kernel[3] // groups,) * groups
        else:
            inputs, outputs, size = a["in_features"], a["out_features"], a["kernel_size"]
        low, high = zip(*a["padding"], strict=True)
        fields = {"strides": a["strides"], "dilations": a["dilation"], "pads": [*low, *high]}
        if len(set(inputs)) == len(set(outputs)) == 1:
            return self._product(x, (sum(outputs), inputs[0], *size), group=len(inputs), **fields)
        parts, first = [], 0
        for i, o in zip(inputs, outputs, strict=True):
            part = self._product(self._cut(x, first, first + i), (o, i, *size), **fields)
            parts += self._quantized(part)
            first += i
        return self._add("QLinearConcat", [self._scale, self._zero, *parts], _MICROSOFT, axis=1)

    def _product(self, x: str, shape: tuple[int, ...], **attributes: Any) -> str:
        return self._add("QLinearConv", [*self._quantized(x), *self._weights(shape)], **attributes)

    def _dot(self, node: ir.Node, x: str) -> str:
        inputs = self._shapes[node.inputs[0]].shape[-1]
        outputs = self._shapes[node.name].shape[-1]
        return self._add("QLinearMatMul", [*self._quantized(x), *self._weights((inputs, outputs))])

    def _weights(self, shape: tuple[int, ...]) -> list[str]:
        values = np.random.default_rng(math.prod(shape)).integers(-127, 128, shape, dtype=np.int8)
        return [self._constant(values), self._scale, self._zero_weight, self._scale, self._zero]
