"""From encoded images to uint8 pixels: whole ones for evaluation, random crops for training.

TensorFlow decodes JPEGs and cuts out of them, in a graph; OpenCV resizes crops, in a third of
TensorFlow's time. Pillow (`ops.decoding`) decodes everything but JPEGs, and JPEGs whose colours must be
changed: whatever the encoding and its colours, an image comes out with the channels of its data set.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import crops
from ftbnn_jax.data.lazy import tf
from ftbnn_jax.ops import decoding

# Every core has a thread of its own that resizes.
cv2.setNumThreads(1)

# Pillow has a higher limit, beyond which it warns, with nothing decoded yet.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

# Bytes; what TensorFlow asks of memory that it takes over.
_ALIGNMENT = 64

# How to invert a JPEG's DCT. The accurate way gives the pixels that other libraries do; the fast one
# saves a tenth of the time and differs by one level on average.
_EVAL_DCT, _TRAIN_DCT = "INTEGER_ACCURATE", "INTEGER_FAST"


def random_crop(image: Any, position: Any, config: TrainConfig, channels: int) -> tuple[Any, Any]:
    """Cuts out a window of random scale and place, as `config.augment` says.

    Args:
      image: encoded, a string; or decoded, uint8 `[H, W, C]`.
      position: int64, the image's number in the training, which its augmentation is drawn from.
      config: gives the seed, and whether to mirror.
      channels: of the result.

    Returns:
      The window, uint8 `[H', W', channels]`, and whether to mirror it, bool.
    """
    seed = tf.stack([tf.cast(config.seed, tf.int64), position])
    cut = crop(image, lambda shape: crops.in_graph(config.augment, shape, seed), channels)
    # Another seed than the crop's, or the two would depend on each other.
    draw = tf.random.stateless_uniform((), seed=seed + tf.constant([1, 0], tf.int64))
    return cut, draw < (0.5 if config.flip else 0.0)


def random_crop_of_pixels(
    image: np.ndarray, position: int, config: TrainConfig
) -> tuple[np.ndarray, bool]:
    """Cuts out a window as `random_crop` does, from uint8 `[H, W, C]` and by NumPy's random numbers."""
    rng = np.random.default_rng((config.seed, position))
    top, left, rows, columns = crops.in_numpy(config.augment, *image.shape[:2], rng)
    mirrored = bool(config.flip and rng.random() < 0.5)
    return image[top : top + rows, left : left + columns], mirrored


def whole(image: Any, channels: int) -> Any:
    """Decodes an image: uint8 `[H, W, channels]`; one that is decoded already stays as it is.

    Evaluation cuts its square out of this. To decode no more than the square would save a third of the
    time, but where colour is subsampled its edge would be interpolated from fewer neighbours.
    """

    def of_jpeg(shape):
        return tf.image.decode_jpeg(image, channels=channels, dct_method=_EVAL_DCT)

    return _decoded(image, channels, of_jpeg, lambda pixels: pixels)


def crop(image: Any, window_of: Callable[[Any], crops.Window], channels: int) -> Any:
    """Decodes the window of an image that `window_of` its shape gives: uint8 `[H, W, channels]`.

    Of a JPEG, only the blocks that the window touches are decoded, unless its colours must be changed.
    """

    def of_pixels(pixels):
        top, left, height, width = window_of(tf.shape(pixels))
        return pixels[top : top + height, left : left + width]

    def of_jpeg(shape):
        window = tf.stack(window_of(shape))
        return tf.image.decode_and_crop_jpeg(image, window, channels=channels, dct_method=_TRAIN_DCT)

    return _decoded(image, channels, of_jpeg, of_pixels)


def _decoded(image: Any, channels: int, of_jpeg: Callable, of_pixels: Callable) -> Any:
    """Returns `of_jpeg` of the shape of a JPEG, int32, if TensorFlow brings its colours to the channels.

    Of everything else it returns `of_pixels` of the whole image, as Pillow decodes it or as it is there.
    """

    def by_pillow():
        # A stateful call would be made in order, with those for the other images of the group.
        pixels = tf.numpy_function(
            lambda data: decoding.from_bytes(data, channels), [image], tf.uint8, stateful=False
        )
        pixels.set_shape((None, None, channels))
        return of_pixels(pixels)

    def of_any_jpeg():
        shape = tf.image.extract_jpeg_shape(image)
        # Gray is repeated in three channels. TensorFlow has another gray of colours, and none of CMYK.
        fits = (shape[2] == channels) | (shape[2] == 1)
        # Each side has 16 bits, so that the product has one more than int32 holds.
        small = tf.cast(shape[0], tf.int64) * tf.cast(shape[1], tf.int64) <= decoding.MOST_PIXELS
        return tf.cond(fits & small, lambda: of_jpeg(shape), by_pillow)

    if image.dtype == tf.string:
        result = tf.cond(tf.image.is_jpeg(image), of_any_jpeg, by_pillow)
    else:
        result = of_pixels(image)
    result.set_shape((None, None, channels))
    return result


def resize(windows: Sequence[np.ndarray], mirrored: Sequence[bool], size: int) -> np.ndarray:
    """Resizes and mirrors crops for training: bilinear, without antialiasing, within one level.

    Args:
      windows: uint8 `[H, W, C]` each, of any sizes.
      mirrored: for each whether to exchange left and right.
      size: of the result.

    Returns:
      uint8 `[n, size, size, C]`.
    """
    shape = (size, size, windows[0].shape[-1])
    resized = _empty((len(windows), *shape))
    for out, window, mirror in zip(resized, windows, mirrored, strict=True):
        pixels = cv2.resize(window, (size, size), interpolation=cv2.INTER_LINEAR)
        # Of one channel, OpenCV drops the axis.
        out[:] = (cv2.flip(pixels, 1) if mirror else pixels).reshape(shape)
    return resized


def _empty(shape: tuple[int, ...]) -> np.ndarray:
    """A new array of uint8, aligned so that TensorFlow takes it without copying it."""
    size = math.prod(shape)
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].reshape(shape)
