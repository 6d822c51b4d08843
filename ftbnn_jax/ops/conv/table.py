"""Which algorithm of `ops.conv.algorithms` computes what: measured rows, and the nearest one.

`python -m ftbnn_jax.bench.tune_convolution` measures the rows of this machine's backend anew.
"""

import contextlib
import math
from typing import NamedTuple

import jax


class Row(NamedTuple):
    """One measurement.

    Attributes:
      kernel_size: height and width of the kernel.
      stride: in both directions.
      size: height and width of the output.
      features_in: of the convolution, also where a gradient is computed.
      features_out: likewise.
      forward: the fastest algorithm of `FORWARD`.
      input_gradient: of `INPUT_GRADIENT`.
      kernel_gradient: of `KERNEL_GRADIENT`.
    """

    kernel_size: int
    stride: int
    size: int
    features_in: int
    features_out: int
    forward: str
    input_gradient: str
    kernel_gradient: str


# CPU: from timings on two threads of a core with AVX-512, batches of 16 and 64; close ones were decided
# by hand. GPU: from timings on an H100, batch 256. TPU: by its manual, not measured; it pads channels
# itself.
ROWS: dict[str, tuple[Row, ...]] = {
    "cpu": (
        Row(1, 1, 28, 64, 128, "matmul", "phases", "matmul"),
        Row(1, 2, 28, 64, 128, "matmul", "phases", "matmul"),
        Row(3, 1, 56, 30, 30, "aligned16", "phases", "shifts"),
        Row(3, 1, 56, 64, 64, "aligned16", "phases", "shifts"),
        Row(3, 1, 7, 512, 512, "aligned16", "phases", "shifts"),
        Row(3, 1, 4, 128, 128, "aligned16", "phases", "shifts"),
        Row(3, 1, 2, 256, 256, "windows", "phases", "windows"),
        Row(3, 1, 1, 512, 512, "windows", "phases", "windows"),
        Row(3, 2, 28, 64, 128, "aligned16", "phases", "windows"),
        Row(3, 2, 4, 64, 128, "aligned16", "phases", "windows"),
        Row(3, 2, 2, 128, 256, "windows", "phases", "windows"),
        Row(3, 2, 1, 256, 512, "windows", "phases", "windows"),
        Row(3, 1, 32, 3, 64, "direct", "transposed", "windows"),
        Row(3, 2, 112, 3, 32, "direct", "transposed", "planes"),
        Row(7, 1, 32, 3, 64, "direct", "transposed", "windows"),
        Row(7, 2, 112, 3, 64, "direct", "transposed", "planes"),
    ),
    "gpu": (
        Row(1, 1, 28, 64, 128, "direct", "transposed", "transposed"),
        Row(3, 1, 56, 64, 64, "direct", "transposed", "transposed"),
        Row(3, 2, 28, 64, 128, "direct", "transposed", "transposed"),
        Row(3, 2, 112, 3, 32, "space_to_depth", "transposed", "space_to_depth"),
        Row(7, 2, 112, 3, 64, "space_to_depth", "transposed", "space_to_depth"),
    ),
    "tpu": (Row(3, 1, 56, 64, 64, "direct", "transposed", "transposed"),),
}

# Channels of the matrix unit that groups are packed into, one block-diagonal kernel for as many as fit;
# 1 computes every group by itself.
GROUP_CHANNELS = {"cpu": 1, "gpu": 64, "tpu": 128}

# Multiple to which the channels of each group are filled up, in all three passes.
CHANNEL_MULTIPLE = {"cpu": 1, "gpu": 32, "tpu": 1}

# Weight of the output's size in `nearest`, relative to that of a number of channels.
_SIZE_WEIGHT = 3


class _Forced(NamedTuple):
    row: Row
    group_channels: int
    channel_multiple: int


# JAX's caches have it in their keys, so that nothing is reused that was traced with other algorithms.
_forced = jax.make_user_context(default_value=None)


def forced(
    forward: str,
    input_gradient: str,
    kernel_gradient: str,
    group_channels: int = 1,
    channel_multiple: int = 1,
) -> contextlib.AbstractContextManager[None]:
    """Makes everything that is traced inside use these algorithms, whatever backend and shape."""
    row = Row(0, 0, 0, 0, 0, forward, input_gradient, kernel_gradient)
    return _forced(_Forced(row, group_channels, channel_multiple))


def group_channels(backend: str) -> int:
    """Returns how many channels of neighbouring groups are computed together at the most."""
    return _forced.value.group_channels if _forced.value else GROUP_CHANNELS.get(backend, 1)


def channel_multiple(backend: str) -> int:
    """Returns the multiple to which the channels of each group are filled up."""
    return _forced.value.channel_multiple if _forced.value else CHANNEL_MULTIPLE.get(backend, 1)


def nearest(
    backend: str, kernel_size: int, stride: int, size: int, features_in: int, features_out: int
) -> Row:
    """Returns the row whose shape is nearest: in kernel size, then in stride, then in the rest.

    In the rest the size of the output counts most: what is slow for small ones is so at any width.
    1x1 kernels are apart from all others, and so is stride 1: some algorithms are for these alone. An
    unknown backend's rows are the GPU's.
    """
    if _forced.value:
        return _forced.value.row
    shape = (size, features_in, features_out)

    def distance(row: Row) -> tuple[float, ...]:
        sizes = zip(
            shape, (row.size, row.features_in, row.features_out), (_SIZE_WEIGHT, 1, 1), strict=True
        )
        rest = sum(weight * abs(math.log(max(1, a) / b)) for a, b, weight in sizes)
        return (
            (kernel_size == 1) != (row.kernel_size == 1),
            (stride == 1) != (row.stride == 1),
            abs(kernel_size - row.kernel_size),
            rest,
        )

    return min(ROWS.get(backend, ROWS["gpu"]), key=distance)
