"""2-D convolution, real, binary or in groups: the one place where it and its gradients are computed.

Arrays are NHWC, kernels HWIO. Padding is symmetric and zero valued, which JAX's ``"SAME"`` is not at
stride 2. How each pass is computed follows from backend and shape, by `ops.conv.table`.
"""

import contextlib
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ftbnn_jax.ops.conv import algorithms, geometry, table
from ftbnn_jax.ops.recompute import FLOAT16_INTEGERS, after

# Dtype in which signs are multiplied, by backend; elsewhere it is the compute dtype.
_SIGNS_DTYPE = {"cpu": jnp.int8, "gpu": jnp.float16}

# JAX's caches have it in their keys, so that nothing is reused that was traced without it.
_as_numbers = jax.make_user_context(default_value=False)


def signs_as_numbers() -> contextlib.AbstractContextManager[None]:
    """Makes everything that is traced inside treat signs like real numbers, in the compute dtype."""
    return _as_numbers(True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    padding: int = 0,
    compute_dtype: jnp.dtype | None = None,
    signs: bool = False,
) -> jax.Array:
    """Convolves `x` with `kernel` and accumulates in float32.

    Sums of products of signs are integers; float32 holds them exactly up to 2^24, whatever the
    operands' dtype, so the result of a binary convolution is exact in every compute dtype.

    Signs are multiplied in whatever is fastest and exact, `compute_dtype` or not: on a CPU int8 with
    sums in int32, on a GPU float16. A GPU's convolutions write the dtype that they read; asked for
    another, XLA widens the operands first. So channels whose sums float16 could not hold are convolved
    in parts, and real operands of 16 bits give sums that are rounded to 16 bits, once.

    The gradients are computed in `compute_dtype`, except that float16 gets bfloat16 gradients: its
    range is too small for them without loss scaling. For the same reason it is this function that
    casts to float16: a gradient has the dtype of its argument, and that must not be float16.

    Args:
      x: `[N, H, W, I]`, float32 or bfloat16.
      kernel: `[KH, KW, I, O]`, likewise.
      stride: step in both directions.
      padding: zeros added on each of the four sides.
      compute_dtype: what both operands are cast to: float32, bfloat16 or float16; None for the dtype
        of `x`.
      signs: whether both operands hold -1, 0 and +1 alone.

    Returns:
      float32 `[N, H', W', O]` with `H' = (H + 2 * padding - KH) // stride + 1`.
    """
    signs_dtype = _signs_dtype(signs)
    if signs_dtype is None:
        x, kernel = _cast(x, kernel, compute_dtype)
        rounded = jax.default_backend() == "gpu" and x.dtype != jnp.float32
        out_dtype = None if rounded else jnp.float32
        return forward(x, kernel, stride, _both(padding), out_dtype).astype(jnp.float32)
    x, kernel = _cast(x, kernel, signs_dtype)
    if x.dtype == jnp.int8:
        return forward(x, kernel, stride, _both(padding), jnp.int32).astype(jnp.float32)
    parts = -(-kernel[..., 0].size // FLOAT16_INTEGERS)
    width = -(-x.shape[-1] // parts)
    sums = [
        forward(x[..., i : i + width], kernel[:, :, i : i + width], stride, _both(padding))
        for i in range(0, x.shape[-1], width)
    ]
    return functools.reduce(jnp.add, [s.astype(jnp.float32) for s in sums])


def _signs_dtype(signs):
    """Returns the dtype in which signs are multiplied; None for the compute dtype."""
    return _SIGNS_DTYPE.get(jax.default_backend()) if signs and not _as_numbers.value else None


def _both(padding):
    return ((padding, padding),) * 2


def _cast(x, kernel, compute_dtype):
    dtype = x.dtype if compute_dtype is None else compute_dtype
    return x.astype(dtype), kernel.astype(dtype)


def _row(x_shape, kernel_shape, stride, padding):
    kernel_size = max(kernel_shape[:2])
    size = geometry.output_size(x_shape[1], kernel_shape[0], stride, padding[0])
    return table.nearest(jax.default_backend(), kernel_size, stride, size, *kernel_shape[2:])


def forward(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: geometry.Padding,
    out_dtype: jnp.dtype | None = None,
) -> jax.Array:
    """Convolves as the table says, without a gradient of its own; padding as in the algorithms."""
    row = _row(x.shape, kernel.shape, stride, padding)
    return algorithms.FORWARD[row.forward](x, kernel, stride, padding, out_dtype)


def _conv2d_fwd(x, kernel, stride, padding, compute_dtype, signs):
    # A residual can be an array but not a dtype, so two empty arrays carry the arguments' dtypes.
    dtypes = jnp.zeros(0, x.dtype), jnp.zeros(0, kernel.dtype)
    y = conv2d(x, kernel, stride, padding, compute_dtype, signs)
    x, kernel = _cast(x, kernel, compute_dtype)
    if _signs_dtype(signs) == jnp.int8:
        x = x.astype(jnp.int8)  # This is a quarter of the memory; kernels are small.
    return y, (x, kernel, *dtypes)


def _conv2d_bwd(stride, padding, compute_dtype, signs, residuals, g):
    del compute_dtype, signs  # The kernel among the residuals is cast already.
    x, kernel, like_x, like_kernel = residuals
    dtype = jnp.bfloat16 if kernel.dtype == jnp.float16 else kernel.dtype
    kernel, g = kernel.astype(dtype), g.astype(dtype)
    padding = _both(padding)
    row = _row(x.shape, kernel.shape, stride, padding)
    # Transposing wants operands and result of one dtype, hence no float32 accumulator type here.
    input_gradient = algorithms.INPUT_GRADIENT[row.input_gradient]
    dx = input_gradient(g, kernel, x.shape, stride, padding, forward)
    kernel_gradient = algorithms.KERNEL_GRADIENT[row.kernel_gradient]
    dkernel = kernel_gradient(x, g, kernel.shape, stride, padding)
    return after(dx, dkernel).astype(like_x.dtype), dkernel.astype(like_kernel.dtype)


conv2d.defvjp(_conv2d_fwd, _conv2d_bwd)


def grouped_conv2d(
    x: jax.Array,
    kernels: Sequence[jax.Array],
    stride: int,
    padding: int,
    compute_dtype: jnp.dtype | None = None,
    signs: bool = False,
) -> jax.Array:
    """Convolves each group of channels with its own kernel and concatenates the results.

    A loop over groups, since `feature_group_count` cannot do groups of unequal width, gathers the
    whole batch on every device under batch sharding, and has a slow weight gradient on CPU. Where the
    table says so, neighbours that fit the matrix unit together are one group, and channels of zeros are
    appended to a group up to a multiple.

    Args:
      x: `[N, H, W, I]`; the groups take its channels in order.
      kernels: one `[K, K, I_g, O_g]` a group, with `sum(I_g) == I`.
      stride: step in both directions.
      padding: zeros added on each of the four sides.
      compute_dtype: of the operands, as in `conv2d`.
      signs: as in `conv2d`.

    Returns:
      float32 `[N, H', W', sum(O_g)]`.
    """
    widths = [kernel.shape[2] for kernel in kernels]
    if sum(widths) != x.shape[-1]:
        raise ValueError(f"kernels take {widths} channels, the input has {x.shape[-1]}")
    kernels = [_block_diagonal(part) for part in _neighbours(kernels)]
    widths = [kernel.shape[2] for kernel in kernels]
    offsets = [sum(widths[:g]) for g in range(1, len(widths))]
    parts = jnp.split(x, offsets, axis=-1) if offsets else [x]
    multiple = table.channel_multiple(jax.default_backend())
    outputs = []
    for part, kernel in zip(parts, kernels, strict=True):
        filled = algorithms.fill(part, (3,), multiple), algorithms.fill(kernel, (2, 3), multiple)
        y = conv2d(*filled, stride, padding, compute_dtype, signs)
        outputs.append(y[..., : kernel.shape[3]])
    return jnp.concatenate(outputs, axis=-1) if offsets else outputs[0]


def _neighbours(kernels: Sequence[jax.Array]) -> list[list[jax.Array]]:
    """Cuts the groups into runs of as many as the backend's matrix unit takes, at least one."""
    most = table.group_channels(jax.default_backend())
    runs: list[list[jax.Array]] = []
    room = [0, 0]
    for kernel in kernels:
        if not runs or any(n > r for n, r in zip(kernel.shape[2:], room, strict=True)):
            runs.append([])
            room = [most, most]
        runs[-1].append(kernel)
        room = [r - n for r, n in zip(room, kernel.shape[2:], strict=True)]
    return runs


def _block_diagonal(kernels: Sequence[jax.Array]) -> jax.Array:
    """Returns one kernel that computes the groups' side by side, with zeros between them."""
    if len(kernels) == 1:
        return kernels[0]
    widths = [kernel.shape[3] for kernel in kernels]
    rows = [
        jnp.pad(kernel, ((0, 0),) * 3 + ((sum(widths[:g]), sum(widths[g + 1 :])),))
        for g, kernel in enumerate(kernels)
    ]
    return jnp.concatenate(rows, axis=2)
