"""Binary convolution in groups, and what follows from its latent weights' shapes and magnitudes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ftbnn_jax.ops.conv import convolution
from ftbnn_jax.ops.quantizers import Quantizer, standardized
from ftbnn_jax.ops.recompute import recomputed


def weight_scale(kernels: Sequence[jax.Array]) -> jax.Array:
    """Explicit scaling factors of a binary convolution: the mean |w| of each output channel.

    They are constants to the gradient, as in Bi-Real Net (Liu et al., 2018).

    Args:
      kernels: real latent weights, one `[K, K, I_g, O_g]` a group.

    Returns:
      `[sum(O_g)]`.
    """
    scales = [jnp.mean(jnp.abs(kernel), axis=(0, 1, 2)) for kernel in kernels]
    return jax.lax.stop_gradient(jnp.concatenate(scales))


def power_of_two_scale(kernels: Sequence[jax.Array]) -> jax.Array:
    """IR-Net's scaling factors: for each output channel a power of two (Qin et al., 2020).

    They are constants to the gradient.

    Args:
      kernels: real latent weights, one `[K, K, I_g, O_g]` a group.

    Returns:
      `[sum(O_g)]`: `2 ** round(log2(mean |v|))`, of the standardised weights `v`.
    """
    return jnp.exp2(jnp.round(jnp.log2(weight_scale([standardized(kernel) for kernel in kernels]))))


def group_sizes(channels: int, groups: int) -> tuple[int, ...]:
    """Splits `channels` into `groups` parts: `channels // groups` each, the last takes the rest.

    >>> group_sizes(154, 5)
    (30, 30, 30, 30, 34)
    """
    if not 1 <= groups <= channels:
        raise ValueError(f"groups={groups}: {channels} channels allow 1 to {channels} groups")
    part = channels // groups
    return (part,) * (groups - 1) + (channels - part * (groups - 1),)


def largest_sum(kernel_size: int, channels: int, groups: int) -> int:
    """Returns the largest magnitude of a binary convolution's sums; its kernel is square."""
    return kernel_size**2 * max(group_sizes(channels, groups))


def binary_conv2d(
    x: jax.Array,
    kernels: Sequence[jax.Array],
    *,
    input_quantizer: Quantizer,
    kernel_quantizer: Quantizer,
    stride: int = 1,
    padding: int = 1,
    compute_dtype: jnp.dtype = jnp.float32,
    recompute: bool = False,
    progress: jax.Array | float = 1.0,
) -> jax.Array:
    """Quantizes activations and latent weights and convolves them, group by group.

    Args:
      x: real activations `[N, H, W, I]`.
      kernels: real latent weights, one `[K, K, I_g, O_g]` a group.
      input_quantizer: makes of the activations what is convolved.
      kernel_quantizer: makes of the latent weights what it is convolved with.
      stride: step in both directions.
      padding: zeros added on each side after quantization; a padded position adds nothing to a sum.
      compute_dtype: dtype of the operands; sums of signs are the same integers in every one.
      recompute: whether the backward pass is handed `x` and finds signs and gradient masks again.
      progress: scalar, share of the training that is done, which quantizers can depend on.

    Returns:
      float32 `[N, H', W', O]`, every element an integer where both quantizers give signs.
    """

    def compute(batch, progress, *kernels):
        a = input_quantizer(batch[0], progress)
        kernels = [kernel_quantizer(kernel, progress) for kernel in kernels]
        signs = input_quantizer.gives_signs and kernel_quantizer.gives_signs
        return convolution.grouped_conv2d(a, kernels, stride, padding, compute_dtype, signs=signs)

    if recompute:
        return recomputed(compute)((x,), None, progress, *kernels)
    return compute((x,), progress, *kernels)
