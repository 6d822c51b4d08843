"""From an image file to uint8 pixels: the one way of evaluation, the packed runtime and predictions.

Where evaluation has TensorFlow decode a JPEG, the pixels are these as well, bit for bit.
"""

import contextlib
import io
import os
from collections.abc import Iterator

import numpy as np
from PIL import Image

from ftbnn_jax.errors import CorruptRecordError, summary

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
# Names of files in these formats end so, in letters of either case.
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
# Pixels of an image; a larger one is not decoded, since a few bytes can claim any size.
MOST_PIXELS = 2**26
# Bytes of a file: more than that many pixels take in any format; a device can give any number.
_MOST_BYTES = 2**30


def from_file(path: str | os.PathLike, channels: int) -> np.ndarray:
    """Decodes a file as `from_bytes` does.

    Raises:
      CorruptRecordError: the file cannot be read, or as `from_bytes`.
    """
    try:
        with open(path, "rb") as file:
            encoded = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise CorruptRecordError(error.strerror or summary(error)) from error
    if len(encoded) > _MOST_BYTES:
        raise CorruptRecordError(f"a file of more than {_MOST_BYTES:,} bytes")
    return from_bytes(encoded, channels)


def from_bytes(encoded: bytes, channels: int) -> np.ndarray:
    """Decodes an image: JPEG, PNG, GIF, BMP or WebP; of an animation, the first frame.

    The image stays as it is stored, whatever its EXIF data say about which side is up.

    Args:
      encoded: a file's bytes.
      channels: 1 or 3.

    Returns:
      uint8 `[H, W, channels]`, as `from_image` has them.

    Raises:
      CorruptRecordError: there is no such image in the bytes, they end early, or it is too large.
    """
    if not encoded:
        raise CorruptRecordError("an image of 0 bytes")
    with _told_in_one_line():
        return from_image(Image.open(io.BytesIO(encoded), formats=FORMATS), channels)


def from_image(image: Image.Image, channels: int) -> np.ndarray:
    """Returns the pixels of an image of Pillow's, which need not be decoded yet.

    Colours become gray as ITU-R BT.601 weighs them; of 16 bits, the upper 8 count; transparency is left
    out.

    Args:
      image: of any mode.
      channels: 1 or 3.

    Returns:
      uint8 `[H, W, channels]`.

    Raises:
      CorruptRecordError: it cannot be decoded, or is too large.
    """
    count = image.width * image.height
    if not 0 < count <= MOST_PIXELS:
        raise _too_large() if count else CorruptRecordError("an image without a pixel")
    with _told_in_one_line():
        image.load()
        # Pillow would look for another way to keep it, and warn where there is none.
        transparency = image.info.pop("transparency", None)
        try:
            return _in_channels(image, channels)
        finally:
            # The image may be the caller's.
            if transparency is not None:
                image.info["transparency"] = transparency


@contextlib.contextmanager
def _told_in_one_line() -> Iterator[None]:
    """Turns what Pillow raises into a CorruptRecordError."""
    try:
        yield
    except (CorruptRecordError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise CorruptRecordError(f"no image in a format of {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise _too_large() from error
    # Its decoders raise what they come upon in bytes that are wrong: OSError, SyntaxError and more.
    except Exception as error:
        raise CorruptRecordError(summary(error)) from error


def _in_channels(image: Image.Image, channels: int) -> np.ndarray:
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode not in ("1", "L", "LA", "RGB"):
        image = image.convert("RGB")
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _too_large() -> CorruptRecordError:
    return CorruptRecordError(f"an image of more than {MOST_PIXELS:,} pixels")
