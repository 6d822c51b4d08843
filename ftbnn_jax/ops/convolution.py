"""2-D convolution: the one place that says how it, and its gradients, are computed.

Arrays are NHWC, kernels HWIO. Padding is symmetric and zero valued, which JAX's ``"SAME"`` is not at
stride 2.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# Below this many input channels a tap's matrix product is too thin to beat XLA's own weight gradient.
_MIN_CHANNELS_FOR_TAPS = 16


def output_size(size: int, kernel_size: int, stride: int, padding: int) -> int:
    """Returns the number of output positions along one axis of `size` input positions."""
    return (size + 2 * padding - kernel_size) // stride + 1


def _conv(x, kernel, stride, padding, out_dtype):
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=out_dtype,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    padding: int = 0,
    compute_dtype: jnp.dtype | None = None,
) -> jax.Array:
    """Convolves `x` with `kernel` and accumulates in float32.

    Sums of products of signs are integers; float32 holds them exactly up to 2^24, whatever the
    operands' dtype, so the result of a binary convolution is exact in every compute dtype.

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

    Returns:
      float32 `[N, H', W', O]` with `H' = (H + 2 * padding - KH) // stride + 1`.
    """
    x, kernel = _cast(x, kernel, compute_dtype)
    return _conv(x, kernel, stride, padding, jnp.float32)


def _cast(x, kernel, compute_dtype):
    dtype = x.dtype if compute_dtype is None else compute_dtype
    return x.astype(dtype), kernel.astype(dtype)


def _conv2d_fwd(x, kernel, stride, padding, compute_dtype):
    # A residual can be an array but not a dtype, so two empty arrays carry the arguments' dtypes.
    dtypes = jnp.zeros(0, x.dtype), jnp.zeros(0, kernel.dtype)
    residuals = (*_cast(x, kernel, compute_dtype), *dtypes)
    return conv2d(x, kernel, stride, padding, compute_dtype), residuals


def _conv2d_bwd(stride, padding, compute_dtype, residuals, g):
    del compute_dtype  # The operands among the residuals are cast already.
    x, kernel, like_x, like_kernel = residuals
    dtype = jnp.bfloat16 if x.dtype == jnp.float16 else x.dtype
    x_, kernel_, g_ = x.astype(dtype), kernel.astype(dtype), g.astype(dtype)
    # Transposing wants operands and result of one dtype, hence no float32 accumulator type here.
    (dx,) = jax.linear_transpose(lambda x: _conv(x, kernel_, stride, padding, None), x_)(g_)
    if jax.default_backend() == "cpu" and kernel.shape[2] >= _MIN_CHANNELS_FOR_TAPS:
        dkernel = _kernel_gradient_by_taps(x_, g_, kernel.shape, stride, padding)
    else:
        (dkernel,) = jax.linear_transpose(lambda k: _conv(x_, k, stride, padding, None), kernel_)(g_)
    return dx.astype(like_x.dtype), dkernel.astype(like_kernel.dtype)


conv2d.defvjp(_conv2d_fwd, _conv2d_bwd)


def _kernel_gradient_by_taps(x, g, kernel_shape, stride, padding):
    """Weight gradient as one matrix product per kernel position.

    XLA's CPU backend computes the gradient as a convolution whose window is the whole image, which is
    several times slower than these products.
    """
    kh, kw, features_in, features_out = kernel_shape
    _, out_h, out_w, _ = g.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    g = g.reshape(-1, features_out)
    taps = []
    for i in range(kh):
        for j in range(kw):
            rows = slice(i, i + stride * (out_h - 1) + 1, stride)
            columns = slice(j, j + stride * (out_w - 1) + 1, stride)
            tap = x[:, rows, columns].reshape(-1, features_in)
            taps.append(jnp.matmul(tap.T, g, preferred_element_type=jnp.float32))
    return jnp.stack(taps).reshape(kernel_shape)
