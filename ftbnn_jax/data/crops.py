"""Random windows of training images, drawn by TensorFlow or by NumPy, from the image's number alone.

`resize_crop` is Appendix C's, after He et al. (2016): the shorter side is resized to a length drawn
from 256 to 480, and a square of 224 is taken at any place. The part of the image that this square shows
is cut out first and resized alone, which samples the same places, up to a pixel where the square's edges
do not fall between pixels; evaluation does so with a shorter side of 256 (`ops.preprocessing`).
`resized_crop` draws area and aspect ratio instead (Szegedy et al., 2015), as many later recipes do.
"""

import math
from typing import Any

import numpy as np

from ftbnn_jax.config import CROP_SIDES
from ftbnn_jax.data.lazy import tf

# Lengths that the shorter side is resized to where the crop is as long as evaluation's, both included.
_SHORTER_SIDES = (256, 480)
# Area and aspect ratio of an Inception crop, relative to the image.
_AREAS = (0.08, 1.0)
_ASPECTS = (3 / 4, 4 / 3)

# Top, left, height and width.
Window = tuple[Any, Any, Any, Any]


def in_graph(augment: str, shape: Any, seed: Any) -> Window:
    """Returns the window of an image of int32 `shape`, in a TensorFlow graph.

    Args:
      augment: "resize_crop" or "resized_crop".
      shape: height, width, and maybe channels.
      seed: int64 `[2]`.
    """
    if augment == "resized_crop":
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            bounding_boxes=tf.zeros((1, 0, 4)),
            seed=seed,
            aspect_ratio_range=_ASPECTS,
            area_range=_AREAS,
            use_image_if_no_bounding_boxes=True,
        )
        return begin[0], begin[1], size[0], size[1]
    height, width = shape[0], shape[1]
    # One operation draws all three; a range of 2**31 - 1 makes the remainders even enough.
    drawn = tf.random.stateless_uniform((3,), seed, 0, tf.int32.max, tf.int32)
    least, most = _SHORTER_SIDES
    side = tf.maximum(1, _side(tf.minimum(height, width), least + drawn[0] % (most - least + 1)))
    return drawn[1] % (height - side + 1), drawn[2] % (width - side + 1), side, side


def in_numpy(augment: str, height: int, width: int, rng: np.random.Generator) -> Window:
    """Returns the window of an image of so many pixels, spread as those of `in_graph`.

    TensorFlow draws an Inception crop's ratio evenly, then the height evenly among those that give an
    allowed area and fit into the image.

    Args:
      augment: as for `in_graph`.
      height: of the image.
      width: likewise.
      rng: what numbers are drawn from.
    """
    if augment == "resized_crop":
        aspect = rng.uniform(*_ASPECTS)
        least, most = (math.sqrt(share * height * width / aspect) for share in _AREAS)
        most = min(most, height, width / aspect)
        rows = max(1, round(rng.uniform(min(least, most), most)))
        columns = min(width, max(1, round(rows * aspect)))
    else:
        shorter = rng.integers(*_SHORTER_SIDES, endpoint=True)
        rows = columns = max(1, int(_side(min(height, width), shorter)))
    top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    return top, left, rows, columns


def _side(length: Any, shorter: Any) -> Any:
    """Returns the side of a crop in an image whose shorter side, `length`, is resized to `shorter`."""
    crop, _ = CROP_SIDES
    return (2 * crop * length + shorter) // (2 * shorter)
