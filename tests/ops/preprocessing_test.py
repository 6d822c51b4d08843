"""Cropping and resizing against matrices in float64 and, bit for bit, against rational numbers."""

import fractions
import itertools

import numpy as np
import pytest

from ftbnn_jax.ops.preprocessing import Preprocessing


def _rule(size, crop=0, antialias=True, channels=3):
    return Preprocessing(size, channels, crop, antialias, (0.0,), (1.0,))


def _images(count, largest, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        height, width = rng.integers(1, largest, 2)
        yield rng.integers(0, 256, (height, width, 3), np.uint8)


def _matrix(size_in, size_out, antialias):
    """Triangle filter between pixel centres, as wide as a source pixel or a target one, the wider."""
    scale = size_in / size_out
    centres = (np.arange(size_out) + 0.5) * scale - 0.5
    distances = np.abs(np.arange(size_in) - centres[:, None]) / (max(scale, 1) if antialias else 1)
    weights = np.maximum(1 - distances, 0)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [1, 7, 32])
def test_pixels_are_the_nearest_to_the_filters_result(size, antialias):
    for image in _images(12, 90):
        rows, columns = (_matrix(n, size, antialias) for n in image.shape[:2])
        expected = np.einsum("ih,jw,hwc->ijc", rows, columns, image.astype(np.float64))
        # Half a level, and what rounding a window's weights to 65536ths can do along two axes.
        slack = 2 * 255 * max(image.shape) / 65536
        assert abs(_rule(size, antialias=antialias).pixels(image) - expected).max() <= 0.5 + slack


def _exact_weights(length, size, antialias):
    """The rule's weights as whole 65536ths, from its definition in rational numbers."""
    width = max(fractions.Fraction(length, size), 1) if antialias else fractions.Fraction(1)
    rows = []
    for o in range(size):
        centre = fractions.Fraction((2 * o + 1) * length, 2 * size) - fractions.Fraction(1, 2)
        weights = [max(fractions.Fraction(0), 1 - abs(i - centre) / width) for i in range(length)]
        running = [sum(weights[: i + 1]) / sum(weights) for i in range(length)]
        rounded = [0, *((65536 * r + fractions.Fraction(1, 2)).__floor__() for r in running)]
        rows.append([b - a for a, b in itertools.pairwise(rounded)])
    return np.array(rows, dtype=object)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [1, 5, 16])
def test_every_bit_follows_from_the_rule(size, antialias):
    for image in _images(4, 40, seed=1):
        rows, columns = (_exact_weights(n, size, antialias) for n in image.shape[:2])
        assert (rows.sum(1) == 65536).all()
        for channel in range(3):
            total = rows @ image[..., channel].astype(object) @ columns.T
            expected = (total + 2**31) // 2**32
            np.testing.assert_array_equal(
                _rule(size, antialias=antialias).pixels(image)[..., channel], expected.astype(np.uint8)
            )


@pytest.mark.parametrize(
    ("height", "width", "crop", "window"),
    [
        (256, 320, 224, (16, 48, 224, 224)),
        (500, 375, 224, (86, 23, 328, 328)),
        (28, 31, 224, (2, 3, 24, 24)),  # 24.5 is rounded down.
        (1, 7, 224, (0, 3, 1, 1)),
        (1, 7, 100, (0, 3, 1, 1)),
        (30, 50, 256, (0, 10, 30, 30)),
        (30, 50, 0, (0, 0, 30, 50)),
    ],
)
def test_the_window_is_the_central_square_or_the_whole_image(height, width, crop, window):
    assert _rule(8, crop).window(height, width) == window
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    top, left, rows, columns = window
    cut = image[top : top + rows, left : left + columns]
    np.testing.assert_array_equal(_rule(8, crop).pixels(image), _rule(8).pixels(cut))


def test_images_of_the_networks_size_stay_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 9, 1), np.uint8)
    np.testing.assert_array_equal(_rule(9, channels=1).stack(images), images)
    assert _rule(9, channels=1).stack(images[:0]).shape == (0, 9, 9, 1)
    # But where a network sees the centre alone, it is enlarged.
    assert (_rule(9, 224, channels=1).stack(images) != images).any()


@pytest.mark.parametrize("shape", [(1, 3000, 3), (3000, 1, 3), (2999, 3001, 3)])
def test_extreme_shapes_keep_white_white(shape):
    white = np.full(shape, 255, np.uint8)
    for rule in (_rule(5), _rule(5, antialias=False), _rule(5, 224)):
        assert (rule.pixels(white) == 255).all()
