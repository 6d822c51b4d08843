"""Standardising images against the formula."""

import jax.numpy as jnp
import numpy as np
import pytest

from ftbnn_jax.ops import image


@pytest.mark.parametrize(
    ("shape", "mean", "std"),
    [
        ((2, 8, 8, 1), (77.0,), (95.0,)),
        ((2, 8, 8, 3), (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
        ((1, 5, 9, 2), (128.0,), (64.0,)),
    ],
)
def test_standardize(shape, mean, std):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    y = image.standardize(jnp.asarray(images), mean, std)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, (images - np.array(mean)) / np.array(std), rtol=1e-5, atol=1e-6)
