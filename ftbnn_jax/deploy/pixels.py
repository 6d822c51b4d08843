"""Proof that a packed network's own preprocessing gives the pixels that evaluation saw."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ftbnn_jax.report import console


@dataclasses.dataclass
class Pixels:
    """Compares pixels that a network makes of stored images with those that evaluation sees.

    Attributes:
      make: from images, uint8 `[H, W, C]` each, to pixels as `Runtime.pixels` gives them.
      compared: pixel values.
      differing: how many of them differ.
    """

    make: Callable[[list[np.ndarray]], np.ndarray]
    compared: int = 0
    differing: int = 0

    def checked(self, batches: Iterable[dict[str, Any]]) -> Iterator[np.ndarray]:
        """Yields the images of weight above 0 of each batch, uint8 `[N, H, W, C]`; none is empty.

        Args:
          batches: uint8 `image`, the pixels that evaluation sees, and `weight`. Where there is
            `decoded`, the images as they are stored, the pixels made of them are compared with `image`.
        """
        for batch in batches:
            there = batch["weight"] > 0
            images = batch["image"][there]
            if not len(images):
                continue
            if "decoded" in batch:
                pixels = self.make([x for x, here in zip(batch["decoded"], there, strict=True) if here])
                same = pixels.shape == images.shape
                self.compared += images.size
                self.differing += int(np.sum(pixels != images)) if same else images.size
            yield images


def failures(compared: int, differing: int) -> Iterator[str]:
    """Yields what is wrong with that many pixel values, a line or none."""
    if differing:
        yield (
            f"{differing:,} of {compared:,} pixel values that its preprocessing gives are not those "
            "that evaluation saw"
        )


def show(compared: int, differing: int) -> None:
    """Prints how many pixel values were compared, if any were."""
    if compared:
        console.print(
            f"preprocessing: {differing:,} of {compared:,} pixel values differ from evaluation's"
        )
