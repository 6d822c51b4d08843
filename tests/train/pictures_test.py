"""Pictures of an evaluation."""

import numpy as np
import pytest

from ftbnn_jax.train import pictures

_BLUE, _ORANGE = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_frames_tell_right_from_wrong(channels):
    """Three images in two columns; the second is not what the network says."""
    images = np.full((3, 8, 6, channels), 200, np.uint8)
    examples = pictures.Examples(images, np.array([0, 1, 12]), np.array([0, 0, 12]))
    # A name in no Latin letters and a label without a name are shown as numbers.
    drawn = pictures.draw(examples, ["a very long name that does not fit", "\u732b"])
    assert drawn.dtype == np.uint8 and drawn.shape == (2 * 138, 2 * 112, 3)
    frames = [tuple(drawn[138 * row + 5, 112 * column + 50]) for row, column in ((0, 0), (0, 1), (1, 0))]
    assert frames == [_BLUE, _ORANGE, _BLUE]
    assert (drawn[8 + 48, 8 + 48] == 200).all()
    assert (drawn[138 + 20 :, 112:] == 255).all()
    # Text below all three, in one line below the first and in two below the second.
    lines = [
        bool((drawn[top : top + 12, left : left + 100] != 255).any())
        for top, left in ((110, 8), (123, 8), (110, 120), (123, 120), (248, 8))
    ]
    assert lines == [True, False, True, True, True]
