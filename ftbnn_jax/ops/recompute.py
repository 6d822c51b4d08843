"""Functions whose backward pass is handed their arguments alone, and computes the rest again.

`jax.checkpoint` asks the same of the compiler with a barrier, which XLA's CPU backend drops: it then
finds the forward pass's own intermediate results and keeps them after all.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Largest magnitudes up to which int16 and float16 hold every integer.
_INT16_MAX = 2**15 - 1
FLOAT16_INTEGERS = 2**11


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function`, with a backward pass that keeps its arguments alone.

    Args:
      function: of a tuple of arrays with a batch axis in front, and of any further arrays.

    Returns:
      A function of the tuple, of what is kept in the place of its first array (from `narrowed`; None for
      the array itself), and of the further arrays.
    """

    @jax.custom_vjp
    def call(batch, kept, *others):
        del kept
        return function(batch, *others)

    def forward(batch, kept, *others):
        like_first = jnp.zeros(0, batch[0].dtype)
        first = batch[0] if kept is None else kept
        return function(batch, *others), (first, like_first, batch[1:], others)

    def backward(residuals, gradients):
        first, like_first, rest, others = residuals
        # The second computation must not look like the forward pass, or the compiler would keep that
        # one's results: a zero is added that it cannot know before the gradient is there. Each image
        # has a zero of its own, so that no device needs another's.
        g = jax.tree.leaves(gradients)[0]
        zero = 0 * g.reshape(len(g), -1)[:, 0] if g.ndim > 1 else jnp.zeros(())
        batch = (first.astype(like_first.dtype), *rest)
        batch = tuple(_add_per_image(x, zero) for x in batch)
        # Arrays that all devices share, such as binarised kernels, would spread one image's zero to all.
        if jax.device_count() == 1:
            others = jax.tree.map(lambda x: x + jnp.ravel(zero)[0].astype(x.dtype), others)
        _, pullback = jax.vjp(function, batch, *others)
        of_batch, *of_others = pullback(gradients)
        return tuple(after(x, of_others) for x in of_batch), None, *of_others

    call.defvjp(forward, backward)
    return call


def narrowed(x: jax.Array, largest_integer: int | None) -> jax.Array | None:
    """Returns integers in 16 bits, to be kept in the place of `x`.

    Args:
      x: `[N, ...]`, floating point.
      largest_integer: the largest magnitude that can occur; None where `x` is not made of integers.

    Returns:
      int16, or float16, which is what a GPU's convolutions write; None if 16 bits do not hold them.
    """
    if largest_integer is None or largest_integer > _INT16_MAX:
        return None
    on_gpu = jax.default_backend() == "gpu"
    dtype = jnp.float16 if on_gpu and largest_integer <= FLOAT16_INTEGERS else jnp.int16
    x = jax.lax.stop_gradient(x)
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return x.astype(dtype)
    # A loop converts right here; XLA would convert where the result is read, and keep `x` until then.
    return jax.lax.map(lambda image: image.astype(dtype), x)


def after(x: jax.Array, others: Any) -> jax.Array:
    """Returns `x`, on a CPU once the arrays in `others` are there.

    Its scheduler would put off the gradients of parameters until the end of the backward pass, and all
    that they need would stay in memory. Accelerators schedule by memory themselves.
    """
    if jax.default_backend() != "cpu":
        return x
    zero = sum((0 * jnp.ravel(other)[0] for other in jax.tree.leaves(others)), jnp.zeros(()))
    return x + zero.astype(x.dtype)


def _add_per_image(x: jax.Array, zero: jax.Array) -> jax.Array:
    return x + zero.reshape(zero.shape + (1,) * (x.ndim - zero.ndim)).astype(x.dtype)
