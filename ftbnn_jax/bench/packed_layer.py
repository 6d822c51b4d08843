"""Time of packed against float32 convolutions, layer by layer and for whole networks.

    python -m ftbnn_jax.bench.packed_layer [SIZE:CHANNELS:GROUPS ...] [--json]

times 3x3 layers with random weights; `--mode=benchmark` of `ftbnn_jax.main` times a trained network.
Both sides alternate in one run and medians are compared, so that a busy machine hurts both alike. JAX
takes all cores; for one thread, pin the process and turn XLA's thread pool off:

    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" taskset -c 0 python ...

With the extra `onnx`, onnxruntime takes its turn in the same run, on as many threads, in float32 and in
int8 (`onnx_network`).
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftbnn_jax import command, report
from ftbnn_jax.bench import timing
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import machine
from ftbnn_jax.ops import binary, quantizers
from ftbnn_jax.ops.conv import convolution
from ftbnn_jax.ops.packed import convolution as popcount

try:
    from ftbnn_jax.deploy import onnx as onnx_network
except ImportError:
    onnx_network = None

BATCHES = (1, 8)
LAYERS = ("56:64:1", "28:128:1", "14:256:1", "7:512:1", "28:200:5", "14:480:5")

NO_ONNX = "not compared with onnxruntime: pip install -e '.[onnx]' adds it"

_ROUNDS = 15
_TURN_MS = 10.0
_LONGEST_S = 20.0


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
      name: of the layer or the network.
      form: of the packed convolution; "" for a network.
      batch: images at once.
      float_ms: median time of the float32 formulation, in ms.
      packed_ms: median time of the packed one, binarising and packing included, in ms.
      binary_ops: additions and multiplications of signs that one call replaces.
      onnx_float32_ms: median time of onnxruntime, all in float32, in ms; None where it is not installed.
      onnx_int8_ms: the same with the binary convolutions in int8.
    """

    name: str
    form: str
    batch: int
    float_ms: float
    packed_ms: float
    binary_ops: int
    onnx_float32_ms: float | None = None
    onnx_int8_ms: float | None = None

    @property
    def ratio(self) -> float:
        """How many times as fast as float32 the packed one is."""
        return self.float_ms / self.packed_ms

    @property
    def gops(self) -> float:
        """Binary operations in a nanosecond."""
        return self.binary_ops / self.packed_ms / 1e6

    def to_dict(self) -> dict[str, Any]:
        """Returns fields, ratio and G binary operations a second."""
        return {**dataclasses.asdict(self), "ratio": self.ratio, "gops": self.gops}


def onnx_calls(build: Callable[[str], Any], x: np.ndarray) -> list[Callable[[], np.ndarray]]:
    """Returns one call of onnxruntime for each of its forms; none where it is not installed.

    Args:
      build: returns the model of a form.
      x: what to run it on.
    """
    if onnx_network is None:
        return []
    loaded = [onnx_network.load(build(form), machine.num_cores()) for form in onnx_network.FORMS]
    return [functools.partial(run, x) for run in loaded]


def medians(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """Returns the median time of one call of each, in ms; short calls have long turns."""
    return timing.medians(calls, _ROUNDS, _TURN_MS, _LONGEST_S)


def layer(name: str, conv: popcount.PackedConv, size: int, batch: int) -> Row:
    """Times one binary convolution on random activations and weights.

    Args:
      name: for the row.
      conv: its geometry and form; one stride and padding on all sides, undilated, as `conv2d` has them.
      size: height and width of the input.
      batch: images at once.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, size, size, sum(conv.in_features))).astype(np.float32)
    if conv.form == "and":
        x = np.maximum(x, 0)
    kernels = [
        rng.random((*conv.kernel_size, *widths)) < 0.5
        for widths in zip(conv.in_features, conv.out_features, strict=True)
    ]
    signs = [jnp.where(kernel, 1.0, -1.0) for kernel in kernels]
    weights = jax.tree.map(jnp.asarray, conv.prepare(kernels, size, size))
    packed = jax.jit(conv)
    sign = quantizers.TwoValuedSign() if conv.form == "xnor" else quantizers.ThreeValuedSign()

    @jax.jit
    def real(signs, x):
        return convolution.grouped_conv2d(sign(x), signs, conv.strides[0], conv.padding[0][0])

    others = onnx_calls(
        lambda form: onnx_network.layer(conv, kernels, form, size, size),
        np.ascontiguousarray(x.transpose(0, 3, 1, 2)),
    )
    x = jnp.asarray(x)
    integers = np.asarray(packed(weights, x))
    if not np.array_equal(integers, real(signs, x)):
        raise AssertionError(f"{name}: packed and float32 results differ")
    for call in others:
        if not np.array_equal(integers, call().transpose(0, 2, 3, 1)):
            raise AssertionError(f"{name}: packed and onnxruntime's results differ")
    times = medians([lambda: real(signs, x), lambda: packed(weights, x), *others])
    return Row(name, conv.form, batch, *times[:2], operations(conv, size) * batch, *times[2:])


def operations(conv: popcount.PackedConv, size: int) -> int:
    """Returns additions and multiplications of a convolution on one image of `size` x `size`."""
    pairs = sum(i * o for i, o in zip(conv.in_features, conv.out_features, strict=True))
    return 2 * math.prod((*conv.kernel_size, *conv.output_shape(size, size), pairs))


def parse_layer(text: str) -> tuple[int, int, int]:
    """Returns size, channels and groups of "56:64:1".

    Raises:
      UserError: `text` is not of that form.
    """
    try:
        size, channels, groups = (int(part) for part in text.split(":"))
    except ValueError:
        size = channels = groups = 0
    if not (size >= 1 and 1 <= groups <= channels):
        raise UserError(f"{text}: SIZE:CHANNELS:GROUPS expected, such as {LAYERS[0]}")
    return size, channels, groups


def main(arguments: Sequence[str]) -> int:
    """Times the layers that the arguments name, in all forms, and prints a table or JSON."""
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.bench.packed_layer",
        description="Time packed 3x3 convolutions against float32 ones, packing included.",
    )
    parser.add_argument(
        "layers",
        nargs="*",
        metavar="SIZE:CHANNELS:GROUPS",
        help=f"layers to time (default: {' '.join(LAYERS)})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    options = parser.parse_args(arguments)
    layers = [parse_layer(text) for text in options.layers or LAYERS]
    machine.keep_memory()
    machine.start_jax()
    rows = []
    for batch in BATCHES:
        for size, channels, groups in layers:
            for form in popcount.FORMS:
                widths = binary.group_sizes(channels, groups)
                name = f"{size}x{size}, {channels} channels, {groups} groups"
                rows.append(layer(name, popcount.PackedConv(widths, widths, form), size, batch))
                if not options.json:
                    print(line(rows[-1]), flush=True)
    if options.json:
        report.print_json([row.to_dict() for row in rows])
    elif onnx_network is None:
        print(NO_ONNX)
    return 0


def line(row: Row) -> str:
    """Returns a row as text."""
    text = (
        f"batch {row.batch}  {row.name:34} {row.form:8} float32 {row.float_ms:9.3f} ms  "
        f"packed {row.packed_ms:9.3f} ms  {row.ratio:5.1f} times as fast  {row.gops:8.1f} Gop/s"
    )
    if row.onnx_int8_ms is None:
        return text
    return f"{text}  onnxruntime float32 {row.onnx_float32_ms:9.3f} ms  int8 {row.onnx_int8_ms:9.3f} ms"


if __name__ == "__main__":
    sys.exit(command.run(main))
