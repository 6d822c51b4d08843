"""Splits whose images are encoded, each in a record or in a file of its own."""

import abc
import concurrent.futures
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import numpy as np

from ftbnn_jax.data.split import Split
from ftbnn_jax.errors import CorruptRecordError, UserError
from ftbnn_jax.host import machine
from ftbnn_jax.ops import decoding

# Images that a thread decodes at a time, of a split that is decoded as a whole.
_PART = 64
# Disks, buckets and servers answer many small requests at a time sooner than one after the other.
_READ_THREADS = 32


@dataclasses.dataclass(frozen=True)
class EncodedSplit(Split):
    """Encoded images with labels, which are read one by one."""

    @property
    def shape(self) -> None:
        return None

    @abc.abstractmethod
    def example(self, index: int) -> tuple[bytes, int]:
        """Returns the encoded image and the label at `index`, whatever the label is.

        Raises:
          CorruptRecordError: they cannot be read.
          UserError: the file that holds them and others cannot be read.
        """

    def whole(self, index: int) -> np.ndarray:
        encoded, _ = self.example(index)
        return decoding.from_bytes(encoded, self.channels)


@functools.cache
def readers() -> concurrent.futures.ThreadPoolExecutor:
    """Returns the threads that wait for disks and networks."""
    return concurrent.futures.ThreadPoolExecutor(_READ_THREADS, "readers")


def decode_all(
    split: EncodedSplit,
    to_pixels: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, int, int],
    limit: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decodes a split into memory, and leaves out up to `limit` images that cannot be read.

    Args:
      split: the images.
      to_pixels: from a decoded image, uint8 `[H, W, C]`, to one of `shape`.
      shape: of each image in memory.
      limit: corrupt images to put up with.

    Returns:
      Images, uint8 `[n, *shape]`, labels, int64 `[n]`, and their numbers in the split, int64 `[n]`.

    Raises:
      UserError: there is no memory for them, a file cannot be read, or more images are corrupt.
    """
    count = split.num_examples
    needed, memory = count * math.prod(shape), machine.memory_bytes()
    if needed > memory / 2:
        raise UserError(
            f"its {count:,} images would be decoded into {needed / 1e9:,.1f} GB of memory, of "
            f"{memory / 1e9:,.1f}; config.augment='resize_crop' reads them from the disk",
            split.name(0),
        )
    images = np.empty((count, *shape), np.uint8)
    labels = np.empty(count, np.int64)

    def decode_part(part: range) -> list[tuple[int, str]]:
        """Fills in images and labels; returns which ones are corrupt, and what is wrong with each."""
        corrupt = []
        for index in part:
            try:
                encoded, labels[index] = split.example(index)
                images[index] = to_pixels(decoding.from_bytes(encoded, split.channels))
            except CorruptRecordError as error:
                corrupt.append((index, str(error)))
        return corrupt

    parts = [range(count)[start : start + _PART] for start in range(0, count, _PART)]
    with concurrent.futures.ThreadPoolExecutor(machine.num_cores()) as pool:
        for index, reason in itertools.chain.from_iterable(pool.map(decode_part, parts)):
            split.report_corrupt(index, reason, limit)
    kept = np.delete(np.arange(count), sorted(split.corrupt))
    return (images[kept] if split.corrupt else images), labels[kept], kept
