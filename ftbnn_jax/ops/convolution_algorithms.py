"""Ways to compute a 2-D convolution and its gradients; `ops.convolution_table` says which one where.

Arrays are NHWC, kernels HWIO. `padding` is a pair of (before, after), rows and then columns; a negative
number cuts off. All ways give the same sums, added up in another order.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]

# What a turn of a loop over images copies together: larger, and it leaves the cache; smaller, and its
# matrix product is too short.
_TURN_BYTES = 10 * 2**20


def _pad(x: jax.Array, padding: Padding) -> jax.Array:
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)))


def _fill(x: jax.Array, axes: tuple[int, ...], multiple: int) -> jax.Array:
    """Appends zeros along `axes` up to a multiple."""
    return jnp.pad(x, [(0, -n % multiple if axis in axes else 0) for axis, n in enumerate(x.shape)])


def direct(x, kernel, stride, padding, out_dtype=None):
    """Forward pass: XLA's convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=out_dtype,
    )


def aligned(x, kernel, stride, padding, out_dtype=None, *, multiple):
    """Forward pass: XLA's convolution, with zero channels appended up to a multiple."""
    filled = _fill(x, (3,), multiple), _fill(kernel, (2, 3), multiple)
    return direct(*filled, stride, padding, out_dtype)[..., : kernel.shape[3]]


def matmul(x, kernel, stride, padding, out_dtype=None):
    """Forward pass of a 1x1 kernel: a matrix product over the positions that the stride meets."""
    x = _pad(x, padding)[:, ::stride, ::stride]
    return jnp.matmul(x, kernel[0, 0], preferred_element_type=out_dtype)


FORWARD: dict[str, Callable[..., jax.Array]] = {
    "direct": direct,
    "aligned8": functools.partial(aligned, multiple=8),
    "aligned16": functools.partial(aligned, multiple=16),
    "matmul": matmul,
}


def transposed_input(g, kernel, x_shape, stride, padding, forward):
    """Input gradient: XLA's transpose of its convolution."""
    del forward
    x = jax.ShapeDtypeStruct(x_shape, g.dtype)
    (dx,) = jax.linear_transpose(lambda x: direct(x, kernel, stride, padding), x)(g)
    return dx


def phases(g, kernel, x_shape, stride, padding, forward):
    """Input gradient: one forward pass of stride 1 for each remainder that a position leaves.

    Input row `stride * m + a` gets output row `m + (a + before - i) / stride` times kernel row `i`,
    for each `i` for which that is whole. None of the zeros between `g`'s rows is multiplied.
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


def _phase_taps(kernel_size, stride, before):
    """For each remainder the kernel's positions that meet it, and `g`'s first; None where none do."""
    found = []
    for remainder in range(stride):
        taps = [i for i in range(kernel_size) if (remainder + before - i) % stride == 0]
        found.append((taps, (remainder + before - taps[-1]) // stride) if taps else None)
    return found


INPUT_GRADIENT: dict[str, Callable[..., jax.Array]] = {"transposed": transposed_input, "phases": phases}


def transposed_kernel(x, g, kernel_shape, stride, padding):
    """Kernel gradient: XLA's transpose of its convolution."""
    kernel = jax.ShapeDtypeStruct(kernel_shape, x.dtype)
    (dkernel,) = jax.linear_transpose(lambda k: direct(x, k, stride, padding), kernel)(g)
    return dkernel


def matmul_kernel(x, g, kernel_shape, stride, padding):
    """Kernel gradient of a 1x1 kernel: one matrix product."""
    x = _pad(x, padding)[:, ::stride, ::stride]
    x = x[:, : g.shape[1], : g.shape[2]]
    return _contract(x, g).reshape(kernel_shape)


def windows(x, g, kernel_shape, stride, padding):
    """Kernel gradient: every window of `x` as one row of a matrix, times `g`; some images at a time."""
    kh, kw, features_in, _ = kernel_shape
    _, out_h, out_w, _ = g.shape
    x = _pad(x, padding)

    def turn(x, g):
        taps = [
            x[:, i : i + stride * (out_h - 1) + 1 : stride, j : j + stride * (out_w - 1) + 1 : stride]
            for i in range(kh)
            for j in range(kw)
        ]
        return _contract(g, jnp.concatenate(taps, -1))

    image_bytes = out_h * out_w * kh * kw * features_in * x.dtype.itemsize
    return _in_turns(turn, x, g, image_bytes).T.reshape(kernel_shape)


def shifts(x, g, kernel_shape, stride, padding):
    """Kernel gradient of stride 1: one matrix product of shifted `x` and shifted `g`.

    Tap (i, j) multiplies x[r, c + j] with g[r - i, c]. Shifting `x` by columns alone and `g` by rows
    alone copies each kw and kh times, instead of `x` kh * kw times.
    """
    del stride
    kh, kw, features_in, features_out = kernel_shape
    _, height, _, _ = x.shape
    _, out_h, out_w, _ = g.shape
    top = padding[0][0]

    def turn(x, g):
        x = _pad(x, ((0, 0), padding[1]))
        columns = jnp.concatenate([x[:, :, j : j + out_w] for j in range(kw)], -1)
        rows = [_pad(g, ((i - top, height - out_h + top - i), (0, 0))) for i in range(kh)]
        return _contract(columns, jnp.concatenate(rows, -1))

    image_bytes = height * out_w * (kw * features_in + kh * features_out) * x.dtype.itemsize
    products = _in_turns(turn, x, g, image_bytes).reshape(kw, features_in, kh, features_out)
    return products.transpose(2, 0, 1, 3)


KERNEL_GRADIENT: dict[str, Callable[..., jax.Array]] = {
    "transposed": transposed_kernel,
    "matmul": matmul_kernel,
    "windows": windows,
    "shifts": shifts,
}


def _contract(a: jax.Array, b: jax.Array) -> jax.Array:
    """Sums `a[n, h, w, :] x b[n, h, w, :]` over all positions, in float32."""
    a, b = (x.reshape(-1, x.shape[-1]) for x in (a, b))
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _in_turns(turn, x, g, image_bytes):
    """Sums `turn(x, g)` over parts of the batch.

    A batch that is spread over devices is one part: every turn of a loop would be all devices'.
    """
    n = len(x)
    most = n if jax.device_count() > 1 else max(1, _TURN_BYTES // max(1, image_bytes))
    images = max(d for d in range(1, n + 1) if n % d == 0 and d <= most)
    if images == n:
        return turn(x, g)
    parts = [a.reshape(n // images, images, *a.shape[1:]) for a in (x, g)]
    zero = jnp.zeros(jax.eval_shape(turn, *(p[0] for p in parts)).shape, jnp.float32)
    return lax.scan(lambda total, part: (total + turn(*part), None), zero, tuple(parts))[0]
