"""Binarisation with three kinds of gradient, and binary convolution.

Paper: section 3 (straight-through estimator clipped to (-1.2, 1.2)), Appendix B (values after ReLU).

The gradients of a sign, with `x` what it was taken of:

    clipped                dx = dy where -bound <= x <= bound, else 0
    piecewise_quadratic    dx = max(2 - 2|x|, 0) * dy                     (Bi-Real Net; Liu et al., 2018)
    evolving               dx = k * t * (1 - tanh(t * x)**2) * dy         (IR-Net; Qin et al., 2020)

where `t` grows from 0.1 to 10, evenly in its logarithm, over the training, and `k = max(1 / t, 1)`: at
first the gradient passes everywhere, at the end it is that of a steep tanh. `bound` plays no part in the
last two.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ftbnn_jax.ops.conv import convolution
from ftbnn_jax.ops.recompute import recomputed

STE_BOUND = 1.2
_FIRST_STEEPNESS, _LAST_STEEPNESS = 0.1, 10.0


def is_positive(x: jax.Array) -> jax.Array:
    """Whether the sign of a floating point number is +1: True from the smallest normal number on.

    A subnormal number counts as 0, on every machine: some processors and compiler settings take it
    for 0 in a comparison and some do not.
    """
    return x >= jnp.finfo(x.dtype).tiny


def is_negative(x: jax.Array) -> jax.Array:
    """Whether the sign of a floating point number is -1; subnormal numbers as in `is_positive`."""
    return x <= -jnp.finfo(x.dtype).tiny


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def sign_activation(
    x: jax.Array,
    bound: float = STE_BOUND,
    two_valued: bool = False,
    gradient: str = "clipped",
    progress: jax.Array | float = 1.0,
) -> jax.Array:
    """Binarises activations.

    Forward:   `y = -1, 0, +1` for `x < 0, x == 0, x > 0`; with `two_valued` (Eq. 2), 0 maps to -1.
    Backward:  see the module.

    Args:
      x: any shape, floating point. -0.0 counts as 0, and so does a subnormal number.
      bound: where the clipped gradient ends, inclusive.
      two_valued: whether an exact 0 becomes -1 instead of staying 0.
      gradient: "clipped", "piecewise_quadratic" or "evolving".
      progress: scalar, share of the training that is done; for "evolving".

    Returns:
      The signs, in the shape and dtype of `x`.
    """
    if two_valued:
        return sign_weight(x, bound)
    # `x + 0` would not do: jnp.sign keeps the sign of -0.0, harmless in sums but not in bit patterns.
    return is_positive(x).astype(x.dtype) - is_negative(x).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def sign_weight(
    w: jax.Array,
    bound: float = STE_BOUND,
    gradient: str = "clipped",
    progress: jax.Array | float = 1.0,
) -> jax.Array:
    """Binarises latent weights, so that each becomes one bit.

    Forward:   `y = +1` for `w > 0`, else -1 (Eq. 2); a subnormal `w` counts as 0.
    Backward:  see the module.

    Args:
      w: latent weights, any shape, floating point.
      bound: where the clipped gradient ends, inclusive.
      gradient: "clipped", "piecewise_quadratic" or "evolving".
      progress: scalar, share of the training that is done; for "evolving".

    Returns:
      -1 and +1, in the shape and dtype of `w`.
    """
    return jnp.where(is_positive(w), jnp.ones_like(w), -jnp.ones_like(w))


def _slope(x, bound, gradient, progress):
    """What the gradient is multiplied with; booleans, an eighth of the memory, where it is 0 or 1."""
    if gradient == "clipped":
        return jnp.abs(x) <= jnp.asarray(bound, x.dtype)
    if gradient == "piecewise_quadratic":
        return jnp.maximum(2 - 2 * jnp.abs(x), 0)
    t = _FIRST_STEEPNESS * (_LAST_STEEPNESS / _FIRST_STEEPNESS) ** jnp.asarray(progress, jnp.float32)
    slope = jnp.maximum(1 / t, 1) * t * (1 - jnp.square(jnp.tanh(t * x)))
    return slope.astype(x.dtype)


def _times_slope(slope, g):
    # The gradient of `progress` is None.
    return (jnp.where(slope, g, 0) if slope.dtype == jnp.bool_ else g * slope), None


def _sign_activation_fwd(x, bound, two_valued, gradient, progress):
    y = sign_activation(x, bound, two_valued, gradient, progress)
    return y, _slope(x, bound, gradient, progress)


def _sign_weight_fwd(w, bound, gradient, progress):
    return sign_weight(w, bound, gradient, progress), _slope(w, bound, gradient, progress)


sign_activation.defvjp(_sign_activation_fwd, lambda b, v, gradient, slope, g: _times_slope(slope, g))
sign_weight.defvjp(_sign_weight_fwd, lambda bound, gradient, slope, g: _times_slope(slope, g))


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
    stride: int = 1,
    padding: int = 1,
    bound: float = STE_BOUND,
    two_valued: bool = False,
    gradient: str = "clipped",
    weight_gradient: str = "clipped",
    progress: jax.Array | float = 1.0,
    activations: str = "sign",
    binary_weights: bool = True,
    compute_dtype: jnp.dtype = jnp.float32,
    recompute: bool = False,
) -> jax.Array:
    """Binarises activations and latent weights and convolves them, group by group.

    Args:
      x: real activations `[N, H, W, I]`.
      kernels: real latent weights, one `[K, K, I_g, O_g]` a group.
      stride: step in both directions.
      padding: zeros added on each side after binarisation; a padded position adds nothing to a sum.
      bound: where the clipped gradients end, inclusive.
      two_valued: whether an exact 0 among the activations becomes -1 instead of staying 0.
      gradient: of the activations' sign, one of the module's.
      weight_gradient: of the weights' sign, likewise.
      progress: scalar, share of the training that is done; for the evolving gradients.
      activations: what becomes of them: "sign", or "tanh" or "identity", which leave them real.
      binary_weights: False takes the latent weights as they are.
      compute_dtype: dtype of the signs; the sums are the same integers in every one.
      recompute: whether the backward pass is handed `x` and finds signs and gradient masks again.

    Returns:
      float32 `[N, H', W', O]`, every element an integer where both are binary.
    """

    def compute(batch, progress, *kernels):
        (a,) = batch
        if activations == "sign":
            a = sign_activation(a, bound, two_valued, gradient, progress)
        elif activations == "tanh":
            a = jnp.tanh(a)
        if binary_weights:
            kernels = [sign_weight(kernel, bound, weight_gradient, progress) for kernel in kernels]
        signs = binary_weights and activations == "sign"
        return convolution.grouped_conv2d(a, kernels, stride, padding, compute_dtype, signs=signs)

    if recompute:
        return recomputed(compute)((x,), None, progress, *kernels)
    return compute((x,), progress, *kernels)
