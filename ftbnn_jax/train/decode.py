"""From encoded images to uint8 pixels: whole ones for evaluation, random crops for training.

TensorFlow decodes and cuts out, in a graph; OpenCV resizes crops, in a third of TensorFlow's time.
Whatever the encoding (gray, CMYK or colour JPEG, PNG of any kind), an image comes out with the channels
of its data set.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from ftbnn_jax.config import TrainConfig

# Every core has a thread of its own that resizes.
cv2.setNumThreads(1)

# Bytes; what TensorFlow asks of memory that it takes over.
_ALIGNMENT = 64

# Area and aspect ratio of a random training crop, relative to the image.
_CROP_AREA = (0.08, 1.0)
_CROP_ASPECT = (3 / 4, 4 / 3)
# How to invert a JPEG's DCT. The accurate way gives the pixels that other libraries do; the fast one
# saves a tenth of the time and differs by one level on average.
_EVAL_DCT, _TRAIN_DCT = "INTEGER_ACCURATE", "INTEGER_FAST"

Window = tuple[Any, Any, Any, Any]


def random_crop(
    tf: Any, image: Any, position: Any, config: TrainConfig, channels: int
) -> tuple[Any, Any]:
    """Cuts out a window of random scale, aspect ratio and place (Appendix C).

    Args:
      tf: the module.
      image: encoded, a string; or decoded, uint8 `[H, W, C]`.
      position: int64, the image's number in the training, which its augmentation is drawn from.
      config: gives the seed, and whether to mirror.
      channels: of the result.

    Returns:
      The window, uint8 `[H', W', channels]`, and whether to mirror it, bool.
    """
    seed = tf.stack([tf.cast(config.seed, tf.int64), position])
    cut = crop(tf, image, lambda shape: random_window(tf, shape, seed), channels)
    # Another seed than the crop's, or the two would depend on each other.
    draw = tf.random.stateless_uniform((), seed=seed + tf.constant([1, 0], tf.int64))
    return cut, draw < (0.5 if config.flip else 0.0)


def whole(tf: Any, image: Any, channels: int) -> Any:
    """Decodes an image: uint8 `[H, W, channels]`; one that is decoded already stays as it is.

    Evaluation cuts its square out of this. To decode no more than the square would save a third of the
    time, but where colour is subsampled its edge would be interpolated from fewer neighbours.
    """
    if image.dtype == tf.string:
        image = tf.cond(
            tf.image.is_jpeg(image),
            lambda: tf.image.decode_jpeg(image, channels=channels, dct_method=_EVAL_DCT),
            lambda: _no_jpeg(tf, image, channels),
        )
    image.set_shape((None, None, channels))
    return image


def random_window(tf: Any, shape: Any, seed: Any) -> Window:
    """Returns top, left, height and width of a random crop of an image of int32 `shape`."""
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        bounding_boxes=tf.zeros((1, 0, 4)),
        seed=seed,
        aspect_ratio_range=_CROP_ASPECT,
        area_range=_CROP_AREA,
        use_image_if_no_bounding_boxes=True,
    )
    return begin[0], begin[1], size[0], size[1]


def crop(
    tf: Any,
    image: Any,
    window_of: Callable[[Any], Window],
    channels: int,
) -> Any:
    """Decodes the window of an image that `window_of` its shape gives: uint8 `[H, W, channels]`.

    Of a JPEG, only the blocks that the window touches are decoded.
    """

    def of_pixels(pixels):
        top, left, height, width = window_of(tf.shape(pixels))
        return pixels[top : top + height, left : left + width]

    def of_jpeg():
        window = tf.stack(window_of(tf.image.extract_jpeg_shape(image)))
        return tf.image.decode_and_crop_jpeg(image, window, channels=channels, dct_method=_TRAIN_DCT)

    if image.dtype == tf.string:
        cut = tf.cond(
            tf.image.is_jpeg(image),
            of_jpeg,
            lambda: of_pixels(_no_jpeg(tf, image, channels)),
        )
    else:
        cut = of_pixels(image)
    cut.set_shape((None, None, channels))
    return cut


def _no_jpeg(tf: Any, image: Any, channels: int) -> Any:
    return tf.io.decode_image(image, channels=channels, expand_animations=False)


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
