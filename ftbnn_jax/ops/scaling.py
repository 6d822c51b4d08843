"""Scaling factors that depend on the input of a binary convolution, which batch norm cannot absorb."""

import jax
import jax.numpy as jnp
import numpy as np

from ftbnn_jax.ops import binary, pooling
from ftbnn_jax.ops.marks import SCALING, mark


def apply(y: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns `y * factor`, float32; `factor` must broadcast to the integers `y`, `[N, H, W, O]`."""
    return mark(y.astype(jnp.float32) * factor, SCALING)


def input_magnitude(x: jax.Array, groups: int, features: int, stride: int) -> jax.Array:
    """XNOR-Net's factor of the activations, K (Rastegari et al., 2016), for a 3x3 convolution.

    `|x|` is averaged over the input channels of each group, then over the window of each output
    position, where padding counts as 0. It is a constant to the gradient.

    Args:
      x: real input of the convolution, `[N, H, W, I]`.
      groups: of the convolution.
      features: its output channels, `O`.
      stride: of the convolution, whose padding is 1.

    Returns:
      float32 `[N, H', W', O]`, or `[N, H', W', 1]` with one group.
    """
    magnitude = mark(jnp.abs(jax.lax.stop_gradient(x.astype(jnp.float32))), SCALING)
    ins, outs = binary.group_sizes(x.shape[-1], groups), binary.group_sizes(features, groups)
    ends = [sum(ins[: g + 1]) for g in range(groups - 1)]
    means = [jnp.mean(part, -1, keepdims=True) for part in jnp.split(magnitude, ends, axis=-1)]
    pooled = pooling.avg_pool_3x3(jnp.concatenate(means, axis=-1), stride)
    if groups == 1:
        return pooled
    return pooled[..., np.repeat(np.arange(groups), outs)]


def gate(x: jax.Array, reduce: jax.Array, expand: jax.Array) -> jax.Array:
    """Real-to-Bin's factor: one for each sample and output channel (Martinez et al., 2020).

    Args:
      x: real input of the convolution, `[N, H, W, I]`.
      reduce: `[I, R]`.
      expand: `[R, O]`.

    Returns:
      float32 `[N, 1, 1, O]`, between 0 and 1: `sigmoid(relu(mean(x) @ reduce) @ expand)`.
    """
    hidden = jax.nn.relu(jnp.dot(pooling.global_avg_pool(x.astype(jnp.float32)), reduce))
    return jax.nn.sigmoid(jnp.dot(hidden, expand))[:, None, None, :]
