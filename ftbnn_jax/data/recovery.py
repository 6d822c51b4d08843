"""Batches that could not be decoded at once: built image by image, corrupt ones told and replaced."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from ftbnn_jax.data.split import Batch, Split
from ftbnn_jax.errors import CorruptRecordError

# From images as they are stored and positions, `[n]` each, to uint8 `[n, H, W, C]`; raises a
# CorruptRecordError where one of them cannot be decoded.
Decode = Callable[[np.ndarray, np.ndarray], np.ndarray]


def batch(
    split: Split,
    decode: Decode,
    indices: np.ndarray,
    positions: np.ndarray,
    *,
    limit: int,
    blank: tuple[int, ...] | None,
) -> tuple[Batch, int]:
    """Builds a batch out of all images that can be read.

    Args:
      split: images.
      decode: decodes a group of them; called with one.
      indices: of the images, int64 `[n]`.
      positions: in the training, which their augmentation is drawn from, int64 `[n]`.
      limit: corrupt records of the split to put up with.
      blank: shape of the black image of weight 0 in a corrupt one's place; None to put the next readable
        image of the split there.

    Returns:
      The batch, as `stream.Stream.batches` gives it, and how many corrupt records were met.

    Raises:
      UserError: there are more corrupt records than that, or a file cannot be read.
    """
    found = []
    for index, position in zip(indices, positions, strict=True):
        found.append(_example(split, decode, int(index), position, limit, blank))
    examples, skipped = zip(*found, strict=True)
    return {key: np.stack([e[key] for e in examples]) for key in examples[0]}, sum(skipped)


def _example(
    split: Split,
    decode: Decode,
    index: int,
    position: np.int64,
    limit: int,
    blank: tuple[int, ...] | None,
) -> tuple[dict[str, Any], int]:
    """Returns an image, label and weight, and how many corrupt records were met on the way."""
    for skipped in itertools.count():
        candidate = (index + skipped) % split.num_examples
        try:
            images, labels = split.fetch(np.array([candidate]))
            try:
                pixels = decode(images, position[None])
            except CorruptRecordError:
                # Pillow says what is wrong with an image, TensorFlow that something is.
                split.whole(candidate)
                raise
            example = {"image": pixels[0], "label": labels[0]}
            return example | {"weight": np.float32(1)}, skipped
        except CorruptRecordError as error:
            reason = str(error)
        split.report_corrupt(candidate, reason, limit)
        if blank:
            example = {"image": np.zeros(blank, np.uint8), "label": np.int32(0)}
            return example | {"weight": np.float32(0)}, 1
