"""Ways to compute a 2-D convolution and its gradients; `ops.conv.table` says which one where.

Arrays are NHWC, kernels HWIO. `stride` is the step in both directions, `padding` a pair of (before,
after), rows and then columns; a negative number cuts off. All ways give the same sums, added up in
another order. Those of `FORWARD` convolve; those of `INPUT_GRADIENT` and `KERNEL_GRADIENT` are the
transposes of that in `x` and in `kernel`, applied to the gradient `g` of the output.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ftbnn_jax.ops.conv.geometry import Padding, output_size

# Bytes that a turn of a loop over images copies: with more they leave the cache, with fewer the matrix
# product is too short.
_TURN_BYTES = 10 * 2**20
# The same where images are multiplied one by one anyway, so that memory alone is the limit.
_PLANES_BYTES = 32 * 2**20

# Multiple of channels that a matrix unit takes after `space_to_depth`.
_DEPTH_MULTIPLE = 16
# Fewest channels for which a loop that copies all parts at once is faster than one after the other.
_LOOP_CHANNELS = 48


def _pad(x: jax.Array, padding: Padding) -> jax.Array:
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)))


def fill(x: jax.Array, axes: tuple[int, ...], multiple: int) -> jax.Array:
    """Returns `x` with zeros appended along `axes`, each up to a multiple of `multiple`."""
    return jnp.pad(x, [(0, -n % multiple if axis in axes else 0) for axis, n in enumerate(x.shape)])


def direct(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, out_dtype: DTypeLike | None = None
) -> jax.Array:
    """Forward pass: XLA's convolution.

    Args:
      x: `[N, H, W, I]`, floating point or int8.
      kernel: `[KH, KW, I, O]`, of the dtype of `x`.
      stride: step in both directions.
      padding: zeros around `x`.
      out_dtype: of sums and result; None for the operands' dtype.

    Returns:
      `[N, H', W', O]`.
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=out_dtype,
    )


def aligned(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Padding,
    out_dtype: DTypeLike | None = None,
    *,
    multiple: int,
) -> jax.Array:
    """Forward pass: XLA's convolution, with channels of zeros appended.

    Args:
      x: `[N, H, W, I]`, floating point or int8.
      kernel: `[KH, KW, I, O]`, of the dtype of `x`.
      stride: step in both directions.
      padding: zeros around `x`.
      out_dtype: of sums and result; None for the operands' dtype.
      multiple: what input and output channels are filled up to a multiple of.

    Returns:
      `[N, H', W', O]`.
    """
    filled = fill(x, (3,), multiple), fill(kernel, (2, 3), multiple)
    return direct(*filled, stride, padding, out_dtype)[..., : kernel.shape[3]]


def matmul(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, out_dtype: DTypeLike | None = None
) -> jax.Array:
    """Forward pass of a 1x1 kernel: a matrix product over the positions that the stride meets.

    Args:
      x: `[N, H, W, I]`, floating point or int8.
      kernel: `[1, 1, I, O]`, of the dtype of `x`.
      stride: step in both directions.
      padding: zeros around `x`.
      out_dtype: of sums and result; None for the operands' dtype.

    Returns:
      `[N, H', W', O]`.
    """
    x = _pad(x, padding)[:, ::stride, ::stride]
    return jnp.matmul(x, kernel[0, 0], preferred_element_type=out_dtype)


def windows(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, out_dtype: DTypeLike | None = None
) -> jax.Array:
    """Forward pass: every window of `x` as one row of a matrix, times the kernel.

    Args:
      x: `[N, H, W, I]`, floating point or int8.
      kernel: `[KH, KW, I, O]`, of the dtype of `x`.
      stride: step in both directions.
      padding: zeros around `x`.
      out_dtype: of sums and result; None for the operands' dtype.

    Returns:
      `[N, H', W', O]`.
    """
    rows = _windows(_pad(x, padding), kernel.shape, stride)
    return jnp.matmul(rows, kernel.reshape(-1, kernel.shape[3]), preferred_element_type=out_dtype)


def _windows(x: jax.Array, kernel_shape: Sequence[int], stride: int) -> jax.Array:
    """Returns the windows of the padded `x`, flattened: `[N, H', W', KH * KW * I]`."""
    kh, kw = kernel_shape[:2]
    out_h, out_w = (output_size(n, k, stride) for n, k in zip(x.shape[1:3], (kh, kw), strict=True))
    rows, columns = (out_h - 1) * stride + 1, (out_w - 1) * stride + 1
    taps = itertools.product(range(kh), range(kw))
    return jnp.concatenate([x[:, i : i + rows : stride, j : j + columns : stride] for i, j in taps], -1)


def space_to_depth(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, out_dtype: DTypeLike | None = None
) -> jax.Array:
    """Forward pass of a larger stride: squares of that size become channels, and the stride 1.

    For the few channels of images, of which a matrix unit has little to multiply at each position. It
    takes channels by sixteens.

    Args:
      x: `[N, H, W, I]`, floating point or int8.
      kernel: `[KH, KW, I, O]`, of the dtype of `x`.
      stride: step in both directions, at least 2.
      padding: zeros around `x`.
      out_dtype: of sums and result; None for the operands' dtype.

    Returns:
      `[N, H', W', O]`.
    """
    x, kernel = _to_depth(x, kernel.shape, stride, padding), _kernel_to_depth(kernel, stride)
    return direct(x, kernel, 1, ((0, 0), (0, 0)), out_dtype)


def _to_depth(x: jax.Array, kernel_shape: Sequence[int], stride: int, padding: Padding) -> jax.Array:
    """Returns `[N, H', W', stride * stride * I]`, channels filled up to a multiple."""
    n, *sizes, features = x.shape
    edges = []
    for size, k, (before, after) in zip(sizes, kernel_shape[:2], padding, strict=True):
        outputs, taps = output_size(size, k, stride, (before, after)), -(-k // stride)
        # The padding ends where the last window does, with the zeros that fill up the kernel.
        edges.append((before, (outputs - 1 + taps) * stride - size - before))
    x = _pad(x, tuple(edges))
    rows, columns = (size // stride for size in x.shape[1:3])
    x = x.reshape(n, rows, stride, columns, stride, features).swapaxes(2, 3)
    return fill(x.reshape(n, rows, columns, stride * stride * features), (3,), _DEPTH_MULTIPLE)


def _kernel_to_depth(kernel: jax.Array, stride: int) -> jax.Array:
    """Returns `[ceil(KH / stride), ceil(KW / stride), stride * stride * I, O]`, filled up likewise."""
    kernel = fill(kernel, (0, 1), stride)
    kh, kw, ins, outs = kernel.shape
    kernel = kernel.reshape(kh // stride, stride, kw // stride, stride, ins, outs).swapaxes(1, 2)
    kernel = kernel.reshape(kh // stride, kw // stride, stride * stride * ins, outs)
    return fill(kernel, (2,), _DEPTH_MULTIPLE)


FORWARD: dict[str, Callable[..., jax.Array]] = {
    "direct": direct,
    "aligned16": functools.partial(aligned, multiple=16),
    "matmul": matmul,
    "space_to_depth": space_to_depth,
    "windows": windows,
}


def transposed_input(
    g: jax.Array,
    kernel: jax.Array,
    x_shape: Sequence[int],
    stride: int,
    padding: Padding,
    forward: Callable[..., jax.Array],
) -> jax.Array:
    """Input gradient: XLA's transpose of its convolution.

    Args:
      g: `[N, H', W', O]`, floating point: the gradient of the output.
      kernel: `[KH, KW, I, O]`, of the dtype of `g`.
      x_shape: `(N, H, W, I)`, of the input.
      stride: step in both directions.
      padding: zeros around the input.
      forward: not used.

    Returns:
      `[N, H, W, I]`, of the dtype of `g`.
    """
    del forward
    x = jax.ShapeDtypeStruct(x_shape, g.dtype)
    (dx,) = jax.linear_transpose(lambda x: direct(x, kernel, stride, padding), x)(g)
    return dx


def phases(
    g: jax.Array,
    kernel: jax.Array,
    x_shape: Sequence[int],
    stride: int,
    padding: Padding,
    forward: Callable[..., jax.Array],
) -> jax.Array:
    """Input gradient: one forward pass of stride 1 for each remainder that a position leaves.

    Input row `stride * m + a` gets output row `m + (a + before - i) / stride` times kernel row `i`,
    for each `i` for which that is whole. None of the zeros between `g`'s rows is multiplied.

    Args:
      g: `[N, H', W', O]`, floating point: the gradient of the output.
      kernel: `[KH, KW, I, O]`, of the dtype of `g`.
      x_shape: `(N, H, W, I)`, of the input.
      stride: step in both directions.
      padding: zeros around the input.
      forward: computes each of them; a function like those of `FORWARD`.

    Returns:
      `[N, H, W, I]`, of the dtype of `g`.
    """
    n, height, width, features = x_shape
    parts = [_phase_taps(k, stride, p[0]) for k, p in zip(kernel.shape[:2], padding, strict=True)]
    sizes = -(-height // stride), -(-width // stride)

    def part(rows, columns):
        if not rows or not columns:
            return jnp.zeros((n, *sizes, features), g.dtype)
        taps = kernel[rows[0][0] : rows[0][-1] + 1 : stride, columns[0][0] : columns[0][-1] + 1 : stride]
        taps = jnp.flip(taps, (0, 1)).swapaxes(2, 3)
        # Output position m reads `g` from m + first to m + first + taps - 1.
        edges = [
            (-first, size + len(chosen) - 1 + first - extent)
            for (chosen, first), size, extent in zip((rows, columns), sizes, g.shape[1:3], strict=True)
        ]
        return forward(g, taps, 1, tuple(edges))

    grid = [jnp.stack([part(rows, columns) for columns in parts[1]], 3) for rows in parts[0]]
    dx = jnp.stack(grid, 2).reshape(n, sizes[0] * stride, sizes[1] * stride, features)
    return dx[:, :height, :width]


def _phase_taps(kernel_size: int, stride: int, before: int) -> list[tuple[list[int], int] | None]:
    """Returns for each remainder the taps that meet it, and `g`'s first position; None where none do."""
    found = []
    for remainder in range(stride):
        taps = [i for i in range(kernel_size) if (remainder + before - i) % stride == 0]
        found.append((taps, (remainder + before - taps[-1]) // stride) if taps else None)
    return found


INPUT_GRADIENT: dict[str, Callable[..., jax.Array]] = {"transposed": transposed_input, "phases": phases}


def transposed_kernel(
    x: jax.Array,
    g: jax.Array,
    kernel_shape: Sequence[int],
    stride: int,
    padding: Padding,
    *,
    forward: Callable[..., jax.Array] = direct,
) -> jax.Array:
    """Kernel gradient: XLA's transpose of a forward pass.

    Args:
      x: `[N, H, W, I]`, floating point or int8; it is cast to the dtype of `g`.
      g: `[N, H', W', O]`, floating point: the gradient of the output.
      kernel_shape: `(KH, KW, I, O)`.
      stride: step in both directions.
      padding: zeros around `x`.
      forward: a function like those of `FORWARD`.

    Returns:
      `[KH, KW, I, O]`, of the dtype of `g`.
    """
    x = x.astype(g.dtype)
    kernel = jax.ShapeDtypeStruct(kernel_shape, x.dtype)
    (dkernel,) = jax.linear_transpose(lambda k: forward(x, k, stride, padding), kernel)(g)
    return dkernel


def matmul_kernel(
    x: jax.Array, g: jax.Array, kernel_shape: Sequence[int], stride: int, padding: Padding
) -> jax.Array:
    """Kernel gradient of a 1x1 kernel: one matrix product.

    Args:
      x: `[N, H, W, I]`, floating point or int8; it is cast to the dtype of `g`.
      g: `[N, H', W', O]`, floating point: the gradient of the output.
      kernel_shape: `(1, 1, I, O)`.
      stride: step in both directions.
      padding: zeros around `x`.

    Returns:
      `[1, 1, I, O]`, float32.
    """
    x = _pad(x.astype(g.dtype), padding)[:, ::stride, ::stride]
    x = x[:, : g.shape[1], : g.shape[2]]
    return _contract(x, g).reshape(kernel_shape)


def windows_kernel(
    x: jax.Array, g: jax.Array, kernel_shape: Sequence[int], stride: int, padding: Padding
) -> jax.Array:
    """Kernel gradient: every window of `x` as one row of a matrix, times `g`; some images at a time.

    Args:
      x: `[N, H, W, I]`, floating point or int8; it is cast to the dtype of `g`.
      g: `[N, H', W', O]`, floating point: the gradient of the output.
      kernel_shape: `(KH, KW, I, O)`.
      stride: step in both directions.
      padding: zeros around `x`.

    Returns:
      `[KH, KW, I, O]`, float32.
    """

    def turn(x, g):
        return _contract(g, _windows(x, kernel_shape, stride))

    x = _pad(x.astype(g.dtype), padding)
    return _in_turns(turn, x, g, _windows_bytes(g, kernel_shape), _TURN_BYTES).T.reshape(kernel_shape)


def _windows_bytes(g: jax.Array, kernel_shape: Sequence[int]) -> int:
    """Returns the bytes that the windows of one image take in the dtype of `g`."""
    return math.prod(g.shape[1:3]) * math.prod(kernel_shape[:3]) * g.dtype.itemsize


def planes(
    x: jax.Array, g: jax.Array, kernel_shape: Sequence[int], stride: int, padding: Padding
) -> jax.Array:
    """Kernel gradient: every position of the windows of `x` as one row of a matrix, times `g`.

    For few channels, which `windows_kernel` would copy a few numbers at a time: with the columns last,
    and those of each remainder of the stride together, whole rows of an image are copied.

    Args:
      x: `[N, H, W, I]`, floating point or int8; it is cast to the dtype of `g`.
      g: `[N, H', W', O]`, floating point: the gradient of the output.
      kernel_shape: `(KH, KW, I, O)`.
      stride: step in both directions.
      padding: zeros around `x`.

    Returns:
      `[KH, KW, I, O]`, float32.
    """
    kh, kw, features_in, features_out = kernel_shape
    _, out_h, out_w, _ = g.shape
    left = padding[1][0]
    last = (out_w - 1 + -(-kw // stride)) * stride
    x = _pad(x.astype(g.dtype), (padding[0], (left, last - x.shape[2] - left)))
    x = x.reshape(*x.shape[:2], last // stride, stride, features_in)

    def turn(x, g):
        n = len(x)
        x = x.transpose(0, 3, 4, 1, 2)
        taps = [
            x[:, j % stride, :, i : i + stride * (out_h - 1) + 1 : stride, j // stride :][..., :out_w]
            for i, j in itertools.product(range(kh), range(kw))
        ]
        rows = jnp.concatenate(taps, 1).reshape(n, kh * kw * features_in, -1)
        # Images are multiplied one by one: one product would need the rows of all put end to end.
        g = g.reshape(n, -1, features_out)
        return jnp.matmul(rows, g, preferred_element_type=jnp.float32).sum(0)

    image_bytes = _windows_bytes(g, kernel_shape)
    return _in_turns(turn, x, g, image_bytes, _PLANES_BYTES).reshape(kernel_shape)


def shifts(
    x: jax.Array, g: jax.Array, kernel_shape: Sequence[int], stride: int, padding: Padding
) -> jax.Array:
    """Kernel gradient of stride 1: one matrix product of shifted `x` and shifted `g`.

    Tap (i, j) multiplies x[r, c + j] with g[r - i, c]. Shifting `x` by columns alone and `g` by rows
    alone copies each kw and kh times, instead of `x` kh * kw times.

    Args:
      x: `[N, H, W, I]`, floating point or int8; it is cast to the dtype of `g`.
      g: `[N, H', W', O]`, floating point: the gradient of the output.
      kernel_shape: `(KH, KW, I, O)`.
      stride: 1.
      padding: zeros around `x`.

    Returns:
      `[KH, KW, I, O]`, float32.
    """
    del stride
    kh, kw, features_in, features_out = kernel_shape
    _, height, _, _ = x.shape
    _, out_h, out_w, _ = g.shape
    top = padding[0][0]

    def turn(x, g):
        x = _pad(x, ((0, 0), padding[1]))
        columns = _side_by_side([x[:, :, j : j + out_w] for j in range(kw)]).astype(g.dtype)
        # Row r of the copy for tap i is row r - i + top of `g`.
        g = _pad(g, ((kh - 1 - top, height - out_h + top), (0, 0)))
        rows = _side_by_side([g[:, kh - 1 - i :][:, :height] for i in range(kh)])
        return _contract(columns, rows)

    image_bytes = height * out_w * (kw * features_in + kh * features_out) * g.dtype.itemsize
    products = _in_turns(turn, x, g, image_bytes, _TURN_BYTES)
    return products.reshape(kw, features_in, kh, features_out).transpose(2, 0, 1, 3)


def _side_by_side(parts: list[jax.Array]) -> jax.Array:
    """Concatenates along the last axis, as one expression where there are many channels.

    On a CPU, XLA writes down each part of a concatenation before it copies it; here also what pads,
    cuts and converts is part of the one loop, whose innermost turns are the channels.
    """
    if parts[0].shape[-1] < _LOOP_CHANNELS:
        return jnp.concatenate(parts, -1)
    number = jnp.arange(len(parts))[:, None]
    parts = [part[..., None, :] for part in parts]
    joined = parts[0]
    for i, part in enumerate(parts[1:], 1):
        joined = jnp.where(number == i, part, joined)
    return joined.reshape(*joined.shape[:-2], -1)


KERNEL_GRADIENT: dict[str, Callable[..., jax.Array]] = {
    "transposed": transposed_kernel,
    "matmul": matmul_kernel,
    "space_to_depth": functools.partial(transposed_kernel, forward=space_to_depth),
    "windows": windows_kernel,
    "planes": planes,
    "shifts": shifts,
}


def fits(name: str, kernel_size: int, stride: int) -> bool:
    """Returns whether the algorithm `name` can compute convolutions of such a kernel and stride."""
    if name == "matmul":
        return kernel_size == 1
    if name == "shifts":
        return stride == 1
    return stride > 1 if name == "space_to_depth" else True


def _contract(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sums `a[n, h, w, :] x b[n, h, w, :]` over all positions, in float32."""
    a, b = (x.reshape(-1, x.shape[-1]) for x in (a, b))
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _in_turns(
    turn: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    g: jax.Array,
    image_bytes: int,
    most_bytes: int,
) -> jax.Array:
    """Sums `turn(x, g)` over parts of the batch of at most `most_bytes`, in float32.

    A batch that is spread over devices is one part: every turn of a loop would be all devices'.
    """
    n = len(x)
    most = n if jax.device_count() > 1 else max(1, most_bytes // max(1, image_bytes))
    images = max(d for d in range(1, n + 1) if n % d == 0 and d <= most)
    if images == n:
        return turn(x, g)

    def add(number, total):
        # Parts are cut out inside the loop: of `g` in another shape XLA would compute all a second time.
        return total + turn(*(lax.dynamic_slice_in_dim(a, number * images, images) for a in (x, g)))

    sums = jax.eval_shape(turn, x[:images], g[:images])
    return lax.fori_loop(0, n // images, add, jnp.zeros(sums.shape, jnp.float32))
