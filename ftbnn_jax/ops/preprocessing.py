"""From an image of any size to the pixels that enter a network: one rule, in whole numbers.

Evaluation, the packed runtime and exported C (`deploy/c/kernels/ftbnn_image.c`) give the same pixels,
bit for bit, on every machine.
"""

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np

# Weights are whole numbers of this sum, so that those of a window lose nothing to rounding.
_ONE_BITS = 16


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network.

    A square is cut out of the centre, or the whole image is taken, and resized with a triangle filter
    between the centres of pixels: along columns first, then along rows, and rounded once, halves up.
    Then `(pixel - mean) / std`, in float32.

    Attributes:
      size: height and width that the network sees.
      channels: of the images.
      crop: side of the square, in 256ths of the image's shorter side, halves down; 0 for the whole
        image, which is stretched. Evaluation on ImageNet (Appendix C of the paper) makes the shorter
        side 256 and takes the 224 x 224 pixels in the centre: cutting 224/256 out and resizing that
        alone samples the same places, up to a pixel where 16 does not divide the side.
      antialias: whether the filter is as wide as an output pixel where the image shrinks, and every
        input pixel counts; otherwise it reaches from one input pixel to the next.
      mean: subtracted from pixel values 0 to 255; one number, or one per channel. Where the network
        subtracts a mean image, that image's means over all positions.
      std: divided by, likewise.
    """

    size: int
    channels: int
    crop: int
    antialias: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns top, left, height and width of the part of an image that is looked at."""
        if not self.crop:
            return 0, 0, height, width
        side = max(1, (2 * self.crop * min(height, width) + 255) // 512)
        return (height - side) // 2, (width - side) // 2, side, side

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """Returns the pixels that enter the network.

        Args:
          image: uint8 `[H, W, channels]`, both sides at least 1.

        Returns:
          uint8 `[size, size, channels]`.
        """
        top, left, height, width = self.window(*image.shape[:2])
        window = image[top : top + height, left : left + width]
        if (height, width) == (self.size, self.size):
            return window
        columns = _filtered(window, self.size, self.antialias, np.uint32)
        rows = _filtered(columns.swapaxes(0, 1), self.size, self.antialias, np.uint64)
        rounded = (rows + (1 << 2 * _ONE_BITS - 1)) >> 2 * _ONE_BITS
        return rounded.swapaxes(0, 1).astype(np.uint8)

    def stack(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Returns `pixels` of each image, of any sizes: uint8 `[N, size, size, channels]`."""
        stacked = [self.pixels(image) for image in images]
        return np.stack(stacked) if stacked else np.zeros((0, *self.shape), np.uint8)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image's pixels."""
        return self.size, self.size, self.channels


def _filtered(x: np.ndarray, size: int, antialias: bool, dtype: type) -> np.ndarray:
    """Sums `x`, `[n, ...]`, over the taps of each of `size` outputs: `[size, ...]`."""
    taps, weights = _filter(len(x), size, antialias)
    total = np.zeros((size, *x.shape[1:]), dtype)
    for tap, weight in zip(taps, weights.astype(dtype), strict=True):
        total += x[tap].astype(dtype) * weight[:, None, None]
    return total


@functools.lru_cache(maxsize=512)
def _filter(length: int, size: int, antialias: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns places in the input and their weights, int64 `[taps, size]` each.

    In units of half an output pixel's share of the input, input i lies at `2 size i` and output o at
    `(2 o + 1) length - size`. Weights are rounded by their running sums, so that those of an output
    add up to `2**16`.
    """
    reach = max(length, size) if antialias else size
    centers = (2 * np.arange(size, dtype=np.int64) + 1) * length - size
    first = -((2 * reach - 1 - centers) // (2 * size))
    count = int(((centers + 2 * reach - 1) // (2 * size) - first).max()) + 1
    places = first + np.arange(count)[:, None]
    distances = np.abs(2 * size * places - centers)
    weights = np.maximum(0, np.where((places >= 0) & (places < length), 2 * reach - distances, 0))
    running = np.cumsum(weights, axis=0)
    shares = ((running << _ONE_BITS + 1) + running[-1]) // (2 * running[-1])
    return np.clip(places, 0, length - 1), np.diff(shares, axis=0, prepend=0)
