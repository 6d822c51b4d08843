"""What happens to images on the device, in training and in deployment alike."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def standardize(
    images: jax.Array, mean: Sequence[float] | np.ndarray, std: Sequence[float]
) -> jax.Array:
    """Brings pixels, of the network's size already (`ops.preprocessing`), to its scale.

    Args:
      images: `[N, H, W, C]`, uint8, pixel values 0 to 255.
      mean: subtracted, in pixel values; one number, one per channel, or an image `[H, W, C]`.
      std: divided by; one number, or one per channel.

    Returns:
      float32 `[N, H, W, C]`.
    """
    x = images.astype(jnp.float32)
    return (x - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
