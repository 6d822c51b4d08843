"""Mean images: files of NumPy's that hold what is subtracted from each pixel, float32 `[S, S, C]`."""

import functools
import hashlib
import io

import numpy as np

from ftbnn_jax import fields
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import paths


@functools.lru_cache(maxsize=4)
def load(path: str, size: int) -> np.ndarray:
    """Returns a mean image, which must not be written to.

    Args:
      path: of the file.
      size: height and width that it must have.

    Raises:
      UserError: it cannot be read, is no mean image, or one of another size.
    """
    where = f"config.mean_image={path}"
    try:
        content = paths.absolute(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror or error}; `python -m ftbnn_jax.data.mean_image` makes it",
            where,
        ) from error
    try:
        image = np.load(io.BytesIO(content), allow_pickle=False)
    # NumPy raises errors of many kinds for what is no file of its own.
    except Exception as error:
        raise UserError("is no file of NumPy's, as ftbnn_jax.data.mean_image writes", where) from error
    fits = image.dtype == np.float32 and image.ndim == 3 and image.shape[2] in (1, 3)
    if not fits or not np.isfinite(image).all():
        found = f"{image.dtype} {fields.shown(image.shape)}"
        raise UserError(
            f"must be finite float32 of height, width and 1 or 3 channels, is {found}", where
        )
    if image.shape[:2] != (size, size):
        raise UserError(
            f"is of {image.shape[0]} x {image.shape[1]} pixels; config.image_size={size} needs its own",
            where,
        )
    image.flags.writeable = False
    return image


def digest(image: np.ndarray) -> str:
    """Returns a short text that no other mean image has."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:16]
