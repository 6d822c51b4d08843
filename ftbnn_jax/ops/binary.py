"""Binarisation with the clipped straight-through gradient, and binary convolution.

Paper: section 3 (straight-through estimator clipped to (-1.2, 1.2)), Appendix B (values after ReLU).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ftbnn_jax.ops import convolution
from ftbnn_jax.ops.recompute import recomputed

STE_BOUND = 1.2


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
    x: jax.Array, bound: float = STE_BOUND, two_valued: bool = False, gradient: str = "clipped"
) -> jax.Array:
    """Binarises activations.

    Forward:   `y = -1, 0, +1` for `x < 0, x == 0, x > 0`; with `two_valued` (Eq. 2), 0 maps to -1.
    Backward:  `dx = dy` where `-bound <= x <= bound`, else 0; with the piecewise quadratic gradient of
               Bi-Real Net (Liu et al., 2018), `dx = max(2 - 2|x|, 0) * dy`, and `bound` plays no part.

    Args:
      x: any shape, floating point. -0.0 counts as 0, and so does a subnormal number.
      bound: where the straight-through gradient ends, inclusive.
      two_valued: whether an exact 0 becomes -1 instead of staying 0.
      gradient: "clipped" or "piecewise_quadratic".

    Returns:
      The signs, in the shape and dtype of `x`.
    """
    if two_valued:
        return sign_weight(x, bound)
    # `x + 0` would not do: jnp.sign keeps the sign of -0.0, harmless in sums but not in bit patterns.
    return is_positive(x).astype(x.dtype) - is_negative(x).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def sign_weight(w: jax.Array, bound: float = STE_BOUND) -> jax.Array:
    """Binarises latent weights, so that each becomes one bit.

    Forward:   `y = +1` for `w > 0`, else -1 (Eq. 2); a subnormal `w` counts as 0.
    Backward:  `dw = dy` where `-bound <= w <= bound`, else 0.

    Args:
      w: latent weights, any shape, floating point.
      bound: where the straight-through gradient ends, inclusive.

    Returns:
      -1 and +1, in the shape and dtype of `w`.
    """
    return jnp.where(is_positive(w), jnp.ones_like(w), -jnp.ones_like(w))


def _clipped_straight_through(x, bound):
    return jnp.abs(x) <= jnp.asarray(bound, x.dtype)


def _sign_activation_fwd(x, bound, two_valued, gradient):
    y = sign_activation(x, bound, two_valued, gradient)
    if gradient == "piecewise_quadratic":
        return y, jnp.maximum(2 - 2 * jnp.abs(x), 0)
    return y, _clipped_straight_through(x, bound)


def _sign_activation_bwd(bound, two_valued, gradient, residual, g):
    return (g * residual if gradient == "piecewise_quadratic" else jnp.where(residual, g, 0),)


def _sign_weight_fwd(w, bound):
    return sign_weight(w, bound), _clipped_straight_through(w, bound)


sign_activation.defvjp(_sign_activation_fwd, _sign_activation_bwd)
sign_weight.defvjp(_sign_weight_fwd, lambda bound, inside, g: (jnp.where(inside, g, 0),))


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


def binary_conv2d(
    x: jax.Array,
    kernels: Sequence[jax.Array],
    *,
    stride: int = 1,
    padding: int = 1,
    bound: float = STE_BOUND,
    two_valued: bool = False,
    gradient: str = "clipped",
    compute_dtype: jnp.dtype = jnp.float32,
    recompute: bool = False,
) -> jax.Array:
    """Binarises activations and latent weights and convolves them, group by group.

    Args:
      x: real activations `[N, H, W, I]`.
      kernels: real latent weights, one `[K, K, I_g, O_g]` a group.
      stride: step in both directions.
      padding: zeros added on each side after binarisation; a padded position adds nothing to a sum.
      bound: where the straight-through gradients end, inclusive.
      two_valued: whether an exact 0 among the activations becomes -1 instead of staying 0.
      gradient: of the activations' sign, "clipped" or "piecewise_quadratic".
      compute_dtype: dtype of the signs; the sums are the same integers in every one.
      recompute: whether the backward pass is handed `x` and finds signs and gradient masks again.

    Returns:
      float32 `[N, H', W', O]`, every element an integer.
    """

    def compute(batch, *kernels):
        signs = sign_activation(batch[0], bound, two_valued, gradient)
        signed_kernels = [sign_weight(kernel, bound) for kernel in kernels]
        return convolution.grouped_conv2d(
            signs, signed_kernels, stride, padding, compute_dtype, signs=True
        )

    return (recomputed(compute) if recompute else compute)((x,), *kernels)
