"""An artifact as an ONNX model, to time other runtimes on the same network. Needs the extra `onnx`.

In both forms the signs are computed inside, and a binary convolution gives exact integers:

    float32    Sign, Conv
    int8       Sign, Cast, ConvInteger: signs and weights in 8 bits, int32 sums; the rest is float32

Groups of one width are one convolution with ONNX's `group`; uneven ones are split and concatenated.
Arrays are NCHW inside. The one difference to the packed runtime: a subnormal activation, which counts as
0 in this package, has the sign that ONNX gives it.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy import layout
from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.nn.spec import BinaryConvPlan
from ftbnn_jax.ops.packed import convolution as packed

FORMS = ("float32", "int8")

# Both old enough for any runtime in use.
_OPSET = 17
_IR_VERSION = 8


def network(artifact: artifact_lib.Artifact, form: str) -> onnx.ModelProto:
    """Returns the whole network, standardisation included.

    Args:
      artifact: what to build.
      form: one of `FORMS`.

    Returns:
      A model from the uint8 pixels that `artifact.preprocessing` makes of images, `[N, image_size,
      image_size, channels]`, for any N, to float32 logits
      `[N, num_classes]`. A binary convolution starts with the node `{plan.name}/sign` and ends with
      `{plan.name}/conv`.

    Raises:
      UserError: the model has no such layer.
    """
    spec, rule = artifact.spec, artifact.preprocessing
    layout.require_folded_scaling(spec, "the ONNX model")
    graph = _Graph(artifact.tensors)
    x = graph.add("Transpose", ["images"], perm=[0, 3, 1, 2])
    x = graph.add("Cast", [x], to=TensorProto.FLOAT)
    x = graph.add("Sub", [x, graph.per_channel(np.asarray(rule.mean, np.float32))])
    x = graph.add("Div", [x, graph.per_channel(np.asarray(rule.std, np.float32))])
    x = graph.conv(x, "stem/conv", spec.stem_stride, spec.stem_kernel // 2)
    x = graph.activation(graph.batch_norm(x, "stem/bn"), "stem", spec.stem_activation)
    if spec.stem_pool:
        x = graph.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for plan in spec.plan():
        kernels = layout.unpack_kernels(plan, artifact.tensors[f"{plan.name}/conv/bits"])
        x = _block(graph, runtime_lib.packed_conv(spec, plan), kernels, plan, x, form)
    if spec.head == "mean":
        x = graph.add("GlobalAveragePool", [x])
    else:
        # The classifier's kernel has the channels of a position side by side.
        x = graph.add("Transpose", [_mean_2x2(graph, x)], perm=[0, 2, 3, 1])
    x = graph.add("Flatten", [x])
    head = (layout.classifier_kernel(artifact.tensors), artifact.tensors["head/bias"])
    graph.add("Gemm", [x, *map(graph.constant, head)], "logits")
    return graph.model(
        ("images", TensorProto.UINT8, ["batch", *rule.shape]),
        ("logits", TensorProto.FLOAT, ["batch", artifact.num_classes]),
    )


def layer(conv: packed.PackedConv, kernels: Sequence[np.ndarray], form: str) -> onnx.ModelProto:
    """Returns one binary convolution.

    Args:
      conv: its geometry; in the form "xnor" a 0 counts as -1.
      kernels: booleans `[KH, KW, I_g, O_g]`, one array a group, True for a weight of +1.
      form: one of `FORMS`.

    Returns:
      A model from float32 activations `[N, I, H, W]`, for any N, H and W, to integers `[N, O, H', W']`:
      float32, or int32 in the form int8.
    """
    graph = _Graph({})
    dtype = TensorProto.INT32 if form == "int8" else TensorProto.FLOAT
    sums = _sums(graph, conv, kernels, _signs(graph, conv, "x", form, "sign"), form, "integers")
    return graph.model(
        ("x", TensorProto.FLOAT, ["batch", sum(conv.in_features), "height", "width"]),
        (sums, dtype, ["batch", sum(conv.out_features), "out_height", "out_width"]),
    )


def session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    """Returns a model ready to run on the CPU, on `threads` threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Else its threads go on spinning after a run, on the processors of what is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def load(model: onnx.ModelProto, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a model of one input and one output as a function that runs in `session`."""
    loaded = session(model, threads)
    (argument,) = loaded.get_inputs()
    return lambda x: loaded.run(None, {argument.name: x})[0]


class _Graph:
    """Nodes and constants of a model; every method returns the name of its result."""

    def __init__(self, tensors: dict[str, np.ndarray]):
        self._tensors = tensors
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def add(self, op: str, inputs: Sequence[str], output: str = "", **attributes) -> str:
        """Adds a node of one output, which has the node's name."""
        name = output or f"{op}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def split(self, x: str, sizes: Sequence[int]) -> list[str]:
        """Adds a split of the channels."""
        names = [f"{x}/group_{g}" for g in range(len(sizes))]
        self._nodes.append(
            helper.make_node("Split", [x, self.constant(np.asarray(sizes, np.int64))], names, axis=1)
        )
        return names

    def constant(self, value: np.ndarray) -> str:
        """Adds a constant."""
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def per_channel(self, value: np.ndarray) -> str:
        """Adds a constant `[C]`, or `[1]`, in a shape that meets NCHW."""
        return self.constant(value.reshape(-1, 1, 1))

    def conv(self, x: str, name: str, stride: int = 1, padding: int = 0) -> str:
        """Adds a real convolution."""
        kernel = self.constant(self._tensors[f"{name}/kernel"].transpose(3, 2, 0, 1))
        return self.add("Conv", [x, kernel], strides=[stride] * 2, pads=[padding] * 4)

    def pool(self, x: str, **attributes) -> str:
        """Adds a mean over windows, stride 2."""
        return self.add("AveragePool", [x], strides=[2, 2], **attributes)

    def batch_norm(self, x: str, name: str) -> str:
        """Adds a folded batch norm."""
        x = self.add("Mul", [x, self.per_channel(self._tensors[f"{name}/multiplier"])])
        return self.add("Add", [x, self.per_channel(self._tensors[f"{name}/offset"])])

    def activation(self, x: str, name: str, kind: str) -> str:
        """Adds one of `spec.ACTIVATIONS` with the slopes of the module `name`."""
        if kind == "none":
            return x
        if kind == "relu":
            return self.add("Relu", [x])
        negative = self.per_channel(self._tensors[f"{name}/act/negative_slope"])
        if kind == "prelu":
            return self.add("PRelu", [x, negative])
        positive = self.per_channel(self._tensors[f"{name}/act/positive_slope"])
        above = self.add("Greater", [x, self.constant(np.float32(0))])
        return self.add("Mul", [x, self.add("Where", [above, positive, negative])])

    def model(self, argument: tuple, result: tuple) -> onnx.ModelProto:
        """Returns the checked model of one input and one output: name, dtype and shape of each."""
        argument, result = (helper.make_tensor_value_info(*info) for info in (argument, result))
        graph = helper.make_graph(self._nodes, "ftbnn_jax", [argument], [result], self._constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def _mean_2x2(graph: _Graph, x: str) -> str:
    # What is added to an odd last row or column does not count in its mean.
    return graph.pool(x, kernel_shape=[2, 2], auto_pad="SAME_UPPER")


def _block(
    graph: _Graph,
    conv: packed.PackedConv,
    kernels: Sequence[np.ndarray],
    plan: BinaryConvPlan,
    x: str,
    form: str,
) -> str:
    shortcut = x if plan.shortcut == "identity" else None
    if plan.shortcut == "duplicate":
        pooled = graph.pool(x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
        shortcut = graph.add("Concat", [pooled, pooled], axis=1)
        x = graph.add("Concat", [x, x], axis=1)
    elif plan.shortcut == "conv":
        shortcut = graph.conv(_mean_2x2(graph, x), f"{plan.name}/shortcut_conv")
        shortcut = graph.batch_norm(shortcut, f"{plan.name}/shortcut_bn")
    signs = _signs(graph, conv, x, form, f"{plan.name}/sign")
    y = _sums(graph, conv, kernels, signs, form, f"{plan.name}/conv")
    if form == "int8":
        y = graph.add("Cast", [y], to=TensorProto.FLOAT)
    y = graph.batch_norm(y, f"{plan.name}/bn")
    if shortcut is not None:
        y = graph.add("Add", [y, shortcut])
    return graph.activation(y, plan.name, plan.activation)


def _signs(graph: _Graph, conv: packed.PackedConv, x: str, form: str, name: str) -> str:
    """Adds the signs of activations; the node that reads them has the name `name`."""
    dtype = np.int8 if form == "int8" else np.float32
    if conv.form == "xnor":
        above = graph.add("Greater", [x, graph.constant(np.float32(0))], name)
        return graph.add("Where", [above, graph.constant(dtype(1)), graph.constant(dtype(-1))])
    signs = graph.add("Sign", [x], name)
    return graph.add("Cast", [signs], to=TensorProto.INT8) if form == "int8" else signs


def _sums(
    graph: _Graph,
    conv: packed.PackedConv,
    kernels: Sequence[np.ndarray],
    signs: str,
    form: str,
    name: str,
) -> str:
    """Adds the convolution of signs, as the result `name`: int32 in the form int8, else float32."""
    (top, bottom), (left, right) = conv.padding
    geometry = {
        "strides": conv.strides,
        "pads": [top, left, bottom, right],
        "dilations": conv.dilation,
    }
    weights = [kernel.transpose(3, 2, 0, 1) for kernel in kernels]

    def convolve(x: str, positive: np.ndarray, output: str = "", **attributes) -> str:
        if form == "float32":
            weight = graph.constant(np.where(positive, np.float32(1), np.float32(-1)))
            return graph.add("Conv", [x, weight], output, **attributes, **geometry)
        # 0 and 2 around a zero point of 1 are -1 and 1. With int8 weights onnxruntime 1.31 has no fast
        # product on x86: 10 to 20 times as slow.
        weight, one = graph.constant(np.uint8(2) * positive), graph.constant(np.uint8(1))
        return graph.add("ConvInteger", [x, weight, "", one], output, **attributes, **geometry)

    if len({weight.shape for weight in weights}) == 1:
        return convolve(signs, np.concatenate(weights), name, group=len(weights))
    parts = graph.split(signs, conv.in_features)
    sums = [convolve(part, weight) for part, weight in zip(parts, weights, strict=True)]
    return graph.add("Concat", sums, name, axis=1)
