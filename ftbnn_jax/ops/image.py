"""What happens to images on the device, in training and in deployment alike."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def standardize(images: jax.Array, size: int, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Brings images to the network's input size and scale.

    Args:
      images: `[N, H, W, C]`, uint8, pixel values 0 to 255.
      size: height and width wanted; other sizes are resized bilinearly, with antialiasing.
      mean: subtracted, in pixel values; one number, or one per channel.
      std: divided by, likewise.

    Returns:
      float32 `[N, size, size, C]`.
    """
    n, h, w, channels = images.shape
    x = images.astype(jnp.float32)
    if (h, w) != (size, size):
        x = jax.image.resize(x, (n, size, size, channels), "linear")
    return (x - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)
