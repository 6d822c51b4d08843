"""Standardising images against the formula, with resizing as an explicit matrix."""

import jax.numpy as jnp
import numpy as np
import pytest

from ftbnn_jax.ops import image


def _resize_matrix(size_in, size_out):
    """Triangle filter between pixel centres, as wide as a source pixel or a target one, the wider."""
    scale = size_in / size_out
    centres = (np.arange(size_out) + 0.5) * scale - 0.5
    distances = np.abs(np.arange(size_in) - centres[:, None]) / max(scale, 1)
    weights = np.maximum(1 - distances, 0)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("shape", "size", "mean", "std"),
    [
        ((2, 8, 8, 1), 8, (77.0,), (95.0,)),
        ((2, 8, 8, 3), 8, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ((1, 5, 9, 3), 7, (10.0, 20.0, 30.0), (1.0, 2.0, 4.0)),
        ((1, 4, 4, 1), 8, (0.0,), (255.0,)),
        ((1, 13, 8, 2), 4, (128.0,), (64.0,)),
    ],
)
def test_standardize(shape, size, mean, std):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    y = image.standardize(jnp.asarray(images), size, mean, std)
    assert y.dtype == jnp.float32
    rows, columns = _resize_matrix(shape[1], size), _resize_matrix(shape[2], size)
    resized = np.einsum("ih,jw,nhwc->nijc", rows, columns, images.astype(np.float64))
    np.testing.assert_allclose(y, (resized - np.array(mean)) / np.array(std), rtol=1e-4, atol=1e-4)
