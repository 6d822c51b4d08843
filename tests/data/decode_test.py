"""Images of all encodings in sets of one and of three channels, and both crops as they are defined."""

import dataclasses
import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from ftbnn_jax import config as config_lib
from ftbnn_jax.data import batches as batches_lib
from ftbnn_jax.data import crops, decode, thread_decoder
from ftbnn_jax.data.lazy import tf
from ftbnn_jax.errors import CorruptRecordError
from ftbnn_jax.nn import architectures
from ftbnn_jax.ops import decoding

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


def of_16_bits(pixels):
    """A PNG whose upper bytes are `pixels` and whose lower ones are random."""
    low = np.random.default_rng(1).integers(0, 256, pixels.shape, np.uint16)
    return cv2.imencode(".png", (pixels[..., ::-1].astype(np.uint16) << 8) + low)[1].tobytes()


RGB = np.asarray(smooth_image())
GRAY = np.asarray(smooth_image().convert("L"))
TABLED = smooth_image().quantize(64)
BY_TABLE = np.array(TABLED.getpalette(), np.uint8).reshape(-1, 3)[np.asarray(TABLED)]
BLACK = Image.new("RGB", TABLED.size)
# A BMP begins with the lowest row: this one's last bytes are zeros.
TOP_BLACK = np.where(np.arange(64)[:, None, None] < 9, 0, RGB).astype(np.uint8)
BILEVEL = smooth_image().convert("1")

# The file, and its pixels; None: those that TensorFlow's own decoder gives.
ODD = {
    "JPEG": (encode(smooth_image(), "JPEG", quality=95), None),
    "gray JPEG": (encode(smooth_image().convert("L"), "JPEG", quality=95), None),
    "CMYK JPEG": (encode(smooth_image().convert("CMYK"), "JPEG", quality=95), None),
    "YCCK JPEG": (ycck(), None),
    "progressive JPEG": (encode(smooth_image(), "JPEG", quality=95, progressive=True), None),
    "PNG": (encode(smooth_image(), "PNG"), RGB),
    "PNG with alpha": (encode(with_alpha(smooth_image()), "PNG"), RGB),
    "PNG of 16 bits": (of_16_bits(RGB), RGB),
    "gray PNG": (encode(Image.fromarray(GRAY), "PNG"), GRAY),
    "gray PNG with alpha": (encode(with_alpha(Image.fromarray(GRAY)), "PNG"), GRAY),
    "gray PNG of 16 bits": (of_16_bits(GRAY[..., None]), GRAY),
    "PNG of 1 bit": (encode(BILEVEL, "PNG"), np.asarray(BILEVEL) * np.uint8(255)),
    "PNG with a palette": (encode(TABLED, "PNG"), BY_TABLE),
    "PNG with a palette and alpha": (encode(TABLED, "PNG", transparency=bytes(range(64))), BY_TABLE),
    "GIF": (encode(TABLED, "GIF"), BY_TABLE),
    "animated GIF": (encode(TABLED, "GIF", save_all=True, append_images=[BLACK]), BY_TABLE),
    "BMP": (encode(Image.fromarray(TOP_BLACK), "BMP"), TOP_BLACK),
    "gray BMP": (encode(Image.fromarray(GRAY), "BMP"), GRAY),
    "WebP": (encode(smooth_image(), "WEBP", lossless=True), RGB),
    "WebP with alpha": (encode(with_alpha(smooth_image()), "WEBP", lossless=True, exact=True), RGB),
    "animated WebP": (
        encode(smooth_image(), "WEBP", lossless=True, save_all=True, append_images=[BLACK]),
        RGB,
    ),
}


def to_channels(pixels, channels):
    """Gray is 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601)."""
    if pixels.ndim == 2 or pixels.shape[-1] == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), channels, axis=-1)
    weights = np.array([0.299, 0.587, 0.114])
    return pixels if channels == 3 else np.rint(pixels @ weights).astype(np.uint8)[..., None]


@pytest.fixture(scope="module", params=[1, 3])
def decoded(request, tmp_path_factory, write_split):
    """For each kind: its pixels, and the images of evaluation, twice, and of 4 epochs of training.

    The second evaluation is that of a batch with a corrupt record, the second training that of PNGs with
    the pixels.
    """
    channels = request.param
    pixels = []
    for data, known in ODD.values():
        if known is None:
            known = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE").numpy()
        pixels.append(to_channels(known, channels))
    encoded = [data for data, _ in ODD.values()]
    plain = [encode(Image.fromarray(p.squeeze()), "PNG") for p in pixels]
    splits = [
        dataclasses.replace(write_split(tmp_path_factory.mktemp("odd"), images), channels=channels)
        for images in (encoded, [*encoded, b"no image"], plain)
    ]
    config = dataclasses.replace(CONFIG, batch_size=len(ODD))
    (evaluated,) = batches_lib.eval_batches(splits[0], config)
    assert evaluated["weight"].all()
    (beside,) = batches_lib.eval_batches(splits[1], dataclasses.replace(config, batch_size=len(ODD) + 1))
    assert beside["weight"].tolist() == [1.0] * len(ODD) + [0.0]
    trained = []
    for split in (splits[0], splits[2]):
        batches = list(batches_lib.train_batches(split, config, first_step=0, last_step=4))
        trained.append(
            [np.stack([b["image"][b["label"] == i][0] for b in batches]) for i in range(len(ODD))]
        )
    kinds = zip(pixels, evaluated["image"], beside["image"][:-1], *trained, strict=True)
    return channels, dict(zip(ODD, kinds, strict=True))


@pytest.mark.parametrize("kind", ODD)
def test_every_encoding_comes_out_in_the_channels_of_its_set(decoded, kind):
    channels, kinds = decoded
    pixels, evaluated, beside, trained, expected = (array.astype(int) for array in kinds[kind])
    assert evaluated.shape == (56, 56, channels)
    np.testing.assert_array_equal(beside, evaluated)
    lossy, grayed = "JPEG" in kind, channels == 1
    difference = abs(evaluated - pixels[4:60, 4:60])
    # A crop that begins within a block of subsampled colour is interpolated from fewer neighbours, and a
    # gray that lies between two numbers is either.
    assert difference.mean() <= (0.1 if lossy else 0.01 if grayed else 0)
    assert difference.max() <= (8 if lossy else 1 if grayed else 0)
    # In training, the same crops as of a PNG with these pixels.
    difference = abs(trained - expected)
    assert difference.mean() <= (2 if lossy else 0.01 if grayed else 0)
    assert difference.max() <= (24 if lossy else 1 if grayed else 0)


def claiming(data, marker, place, sides):
    """Changes the sides that an image's header claims, `place` bytes behind a marker."""
    start = data.index(marker) + place
    changed = bytearray(data)
    changed[start : start + len(sides)] = sides
    # The checksum of a PNG's header, over its name and 13 bytes.
    if marker == b"IHDR":
        name = data.index(marker)
        changed[name + 17 : name + 21] = zlib.crc32(changed[name : name + 17]).to_bytes(4, "big")
    return bytes(changed)


# A file, and what is said of it.
BAD = {
    "nothing": (b"", "an image of 0 bytes"),
    "text": (b"no image", "no image in a format of JPEG, PNG, GIF, BMP, WEBP"),
    "a TIFF": (encode(smooth_image(), "TIFF"), "no image in a format of"),
    "half a JPEG": (ODD["JPEG"][0][:900], "truncated"),
    "half a CMYK JPEG": (ODD["CMYK JPEG"][0][:2000], "truncated"),
    "a JPEG's head": (b"\xff\xd8\xffabc", "no image in a format of"),
    "half a PNG": (ODD["PNG"][0][:2000], "truncated"),
    "half a GIF": (ODD["GIF"][0][:1000], "truncated"),
    "half a BMP": (ODD["BMP"][0][:2000], "truncated"),
    "half a WebP": (ODD["WebP"][0][:2000], ""),
    "a huge JPEG": (
        claiming(ODD["JPEG"][0], b"\xff\xc0", 5, bytes.fromhex("fdc0fdc0")),
        "an image of more than 67,108,864 pixels",
    ),
    "a large JPEG": (
        claiming(ODD["JPEG"][0], b"\xff\xc0", 5, bytes.fromhex("20002001")),
        "an image of more than 67,108,864 pixels",
    ),
    "a huge PNG": (
        claiming(ODD["PNG"][0], b"IHDR", 4, bytes.fromhex("0000ffff0000ffff")),
        "an image of more than 67,108,864 pixels",
    ),
}


@pytest.mark.parametrize(
    ("kind", "channels"), [("JPEG", 3), ("progressive JPEG", 3), ("gray JPEG", 3), ("gray JPEG", 1)]
)
def test_pillow_and_tensorflow_decode_the_same_pixels(kind, channels):
    """Bit for bit, wherever evaluation takes TensorFlow's."""
    data = ODD[kind][0]
    pixels = tf.io.decode_jpeg(data, channels=channels, dct_method="INTEGER_ACCURATE")
    np.testing.assert_array_equal(decoding.from_bytes(data, channels), pixels)


@pytest.mark.parametrize("kind", ODD)
def test_damaged_bytes_are_pixels_or_one_line(kind):
    """Bytes changed, cut out and put in at random places, most of them in the header."""
    rng = np.random.default_rng(list(ODD).index(kind))
    for _ in range(50):
        data = bytearray(ODD[kind][0])
        for place in rng.integers(0, min(len(data), 10 ** rng.integers(2, 5)), rng.integers(1, 5)):
            data[place : place + rng.integers(0, 9)] = rng.bytes(rng.integers(0, 9))
        channels = int(rng.choice([1, 3]))
        try:
            pixels = decoding.from_bytes(bytes(data), channels)
        except CorruptRecordError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, channels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("train", [False, True])
def test_what_is_wrong_with_an_image_is_told(tmp_path, write_split, capfd, channels, train):
    """One readable image among bad ones: in training it stands in for those before it."""
    split = write_split(tmp_path, [data for data, _ in BAD.values()] + [ODD["PNG"][0]])
    split = dataclasses.replace(split, channels=channels)
    config = dataclasses.replace(CONFIG, batch_size=split.num_examples, max_corrupt_records=len(BAD))
    if train:
        (batch,) = batches_lib.train_batches(split, config, first_step=0, last_step=1)
        assert set(batch["label"]) == {len(BAD)}
    else:
        (batch,) = batches_lib.eval_batches(split, config)
        assert batch["weight"].tolist() == [0.0] * len(BAD) + [1.0]
    assert split.corrupt == set(range(len(BAD)))
    warnings = [line for line in capfd.readouterr().err.splitlines() if "passed over" in line]
    for index, (kind, (_, reason)) in enumerate(BAD.items()):
        (line,) = (line for line in warnings if f"{split.name(index)}: " in line)
        told = line.partition("corrupt (")[2].removesuffix("); passed over")
        assert told and reason in told, (kind, line)


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
    (batch,) = batches_lib.eval_batches(split, config)
    # Rounded to whole numbers; at the crop's edge nothing beyond it is known.
    inner = (slice(1, -1), slice(1, -1))
    assert abs(batch["image"][0].astype(float) - expected)[inner].max() <= 0.5 + 1e-3


_DRAWS = 2000


def _as_described(height, width, rng):
    """Resizes the shorter side to 256 to 480, then takes 224 x 224 from anywhere (He et al., 2016).

    Returns the shorter side, and where the crop's centre lies, as shares of height and width.
    """
    shorter = rng.integers(256, 481)
    resized = np.array([height, width]) * shorter / min(height, width)
    corner = [rng.integers(0, int(np.floor(side)) - 224 + 1) for side in resized]
    return shorter, *((np.array(corner) + 112) / resized)


def _windows(by, height, width):
    if by == "tensorflow":
        seeds = tf.data.Dataset.range(_DRAWS).map(
            lambda i: tf.stack(crops.in_graph("resize_crop", (height, width, 3), (7, i)))
        )
        return np.stack(list(seeds.as_numpy_iterator()))
    return np.array(
        [
            crops.in_numpy("resize_crop", height, width, np.random.default_rng((7, i)))
            for i in range(_DRAWS)
        ]
    )


@pytest.mark.parametrize("by", ["tensorflow", "numpy"])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (640, 427)])
def test_scale_and_place_are_spread_as_described(by, height, width):
    """Mean and standard deviation of 2,000 draws, to four standard errors of their differences."""
    top, left, rows, columns = _windows(by, height, width).T
    np.testing.assert_array_equal(rows, columns)
    assert top.min() >= 0 and (top + rows).max() <= height
    assert left.min() >= 0 and (left + columns).max() <= width
    length = min(height, width)
    assert (rows.min(), rows.max()) == (round(length * 224 / 480), round(length * 224 / 256))
    shorter, y, x = 224 * length / rows, (top + rows / 2) / height, (left + rows / 2) / width
    rng = np.random.default_rng(11)
    expected = np.array([_as_described(height, width, rng) for _ in range(_DRAWS)]).T
    # The side is a whole number of pixels, and so is the place: a hundredth of the spread at the most.
    for found, other in zip((shorter, y, x), expected, strict=True):
        deviation = other.std()
        error = deviation * np.sqrt(2 / _DRAWS)
        assert abs(found.mean() - other.mean()) < 4 * error
        # The deviation of a deviation is at most that of a normal distribution's.
        assert abs(found.std() - deviation) < 4 * error / np.sqrt(2)
    # Scale and place are drawn apart from each other, within what the window leaves of the image.
    share = top / np.maximum(height - rows, 1)
    assert abs(np.corrcoef(rows, share)[0, 1]) < 4 / np.sqrt(_DRAWS)
    assert abs(share.mean() - 0.5) < 4 * np.sqrt(1 / 12 / _DRAWS)


@pytest.mark.parametrize(("shorter", "length"), [(256, 512), (480, 480)])
def test_a_crop_is_that_of_the_resized_image(shorter, length):
    """Equal pixels: at half the size every pixel is the mean of four, at the same size it is itself."""
    image = np.asarray(smooth_image(length, length + 64))
    resized = bilinear(image, shorter, (length + 64) * shorter // length)
    top, left = 17, 21
    expected = resized[top : top + 224, left : left + 224]
    step, side = length // shorter, int(crops._side(length, shorter))
    assert side == 224 * step
    window = image[top * step : top * step + side, left * step : left * step + side]
    (found,) = decode.resize([window], [False], 224)
    assert np.abs(found - expected).max() <= 0.5


@pytest.mark.parametrize("threads", [False, True])
def test_pixels_of_given_draws(tmp_path, write_split, threads):
    """Both decoders cut out, resize and mirror what their draws say, of a PNG to the level."""
    image = smooth_image(300, 260)
    split = write_split(tmp_path, [encode(image, "PNG")] * 8)
    config = dataclasses.replace(CONFIG, batch_size=8, seed=6)
    assert config.augment == "resize_crop"
    if threads:
        decoder = thread_decoder.Decoder(split, config, lambda step: (np.arange(8),) * 2, 8, True)
        (batch,) = decoder.batches(0, 1)
    else:
        (batch,) = batches_lib.train_batches(split, config, first_step=0, last_step=1)
    mirrored = 0
    for position, found in enumerate(batch["image"]):
        if threads:
            rng = np.random.default_rng((6, position))
            top, left, rows, columns = crops.in_numpy("resize_crop", 300, 260, rng)
            mirror = rng.random() < 0.5
        else:
            seed = tf.constant([6, position], tf.int64)
            top, left, rows, columns = map(int, crops.in_graph("resize_crop", (300, 260, 3), seed))
            mirror = float(tf.random.stateless_uniform((), seed + tf.constant([1, 0], tf.int64))) < 0.5
        window = np.asarray(image)[top : top + rows, left : left + columns]
        expected = bilinear(window, 56, 56)
        mirrored += mirror
        np.testing.assert_array_less(np.abs(found - (expected[:, ::-1] if mirror else expected)), 1)
    assert 0 < mirrored < 8
