"""Images of all encodings that ImageNet holds, and the centre crop against its definition."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from ftbnn_jax import config as config_lib
from ftbnn_jax.nn import architectures
from ftbnn_jax.train import input_pipeline

# Of 64 pixels 224/256 are 56, so that evaluation does not resize.
CONFIG = config_lib.TrainConfig(architectures.small((1,), 8), image_size=56, batch_size=4)


def smooth_image(height=64, width=64):
    """Colours that vary slowly, as in photographs, with some noise."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(9 * x + 2 * y), np.cos(7 * y - 3 * x), np.sin(5 * x * y + 1)]
    noise = np.random.default_rng(0).normal(0, 3, (height, width, 3))
    return Image.fromarray(np.clip(127 + 100 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8))


def encode(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def ycck():
    """A JPEG whose first three components are YCbCr: a CMYK one, told to be YCCK."""
    data = bytearray(encode(smooth_image().convert("CMYK"), "JPEG", quality=95))
    # The APP14 segment: marker, 2 bytes of length, "Adobe", 6 bytes, and the transform.
    transform = data.index(b"\xff\xee\x00\x0eAdobe") + 15
    assert data[transform] == 0
    data[transform] = 2
    return bytes(data)


def with_alpha(image):
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


ODD = {
    "gray JPEG": lambda: encode(smooth_image().convert("L"), "JPEG", quality=95),
    "CMYK JPEG": lambda: encode(smooth_image().convert("CMYK"), "JPEG", quality=95),
    "YCCK JPEG": ycck,
    "progressive JPEG": lambda: encode(smooth_image(), "JPEG", quality=95, progressive=True),
    "PNG": lambda: encode(smooth_image(), "PNG"),
    "PNG with alpha": lambda: encode(with_alpha(smooth_image()), "PNG"),
    "gray PNG": lambda: encode(smooth_image().convert("L"), "PNG"),
    "gray PNG with alpha": lambda: encode(with_alpha(smooth_image().convert("L")), "PNG"),
    "PNG with a palette": lambda: encode(smooth_image().quantize(64), "PNG"),
}


@pytest.fixture(scope="module")
def decoded(tmp_path_factory, write_split):
    """For each kind: Pillow's pixels, and the images of evaluation and of 4 epochs of training.

    The last is given for the file itself and for a PNG of Pillow's pixels.
    """
    config = dataclasses.replace(CONFIG, batch_size=len(ODD))
    encoded = [make() for make in ODD.values()]
    pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in encoded]
    plain = [encode(Image.fromarray(p), "PNG") for p in pixels]
    splits = [write_split(tmp_path_factory.mktemp("odd"), images) for images in (encoded, plain)]
    (evaluated,) = input_pipeline.eval_batches(splits[0], config)
    assert evaluated["weight"].all()
    trained = []
    for split in splits:
        batches = list(input_pipeline.train_batches(split, config, first_step=0, last_step=4))
        trained.append(
            [np.stack([b["image"][b["label"] == i][0] for b in batches]) for i in range(len(ODD))]
        )
    return dict(zip(ODD, zip(pixels, evaluated["image"], *trained, strict=True), strict=True))


@pytest.mark.parametrize("kind", ODD)
def test_every_encoding_comes_out_in_three_channels(decoded, kind):
    pixels, evaluated, trained, expected = (array.astype(int) for array in decoded[kind])
    assert evaluated.shape == (56, 56, 3)
    difference = abs(evaluated - pixels[4:60, 4:60])
    # A crop that begins within a block of subsampled colour is interpolated from fewer neighbours.
    assert difference.mean() <= (0.1 if "JPEG" in kind else 0)
    assert difference.max() <= (8 if "JPEG" in kind else 0)
    # In training, the same crops as of a PNG with these pixels, up to the inverse DCT's rounding.
    difference = abs(trained - expected)
    assert difference.mean() <= (2 if "JPEG" in kind else 0)
    assert difference.max() <= (24 if "JPEG" in kind else 0)


def bilinear(image, height, width):
    """Bilinear resizing by its definition: output pixel j lies at (j + 1/2) S/s - 1/2."""

    def along(array, size):
        position = np.clip((np.arange(size) + 0.5) * len(array) / size - 0.5, 0, len(array) - 1)
        low = np.minimum(position.astype(int), len(array) - 2)
        share = (position - low)[:, None, None]
        return array[low] * (1 - share) + array[low + 1] * share

    return along(along(image.astype(float), height).swapaxes(0, 1), width).swapaxes(0, 1)


@pytest.mark.parametrize(("height", "width"), [(512, 640), (416, 208), (240, 240)])
def test_center_crop_is_that_of_the_resized_image(tmp_path, write_split, height, width):
    """Shorter side to 256, then the 224 x 224 pixels in the middle (Appendix C)."""
    image = smooth_image(height, width)
    scale = 256 / min(height, width)
    resized = bilinear(np.asarray(image), round(height * scale), round(width * scale))
    top, left = (resized.shape[0] - 224) // 2, (resized.shape[1] - 224) // 2
    expected = resized[top : top + 224, left : left + 224]
    config = dataclasses.replace(CONFIG, image_size=224, batch_size=1)
    split = write_split(tmp_path, [encode(image, "PNG")])
    (batch,) = input_pipeline.eval_batches(split, config)
    # Rounded to whole numbers; at the crop's edge nothing beyond it is known.
    inner = (slice(1, -1), slice(1, -1))
    assert abs(batch["image"][0].astype(float) - expected)[inner].max() <= 0.5 + 1e-3
