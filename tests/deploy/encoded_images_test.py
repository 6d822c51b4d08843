"""From encoded images to logits: evaluation, the packed runtime and C see the same pixels."""

import dataclasses
import io

import c_programs
import networks
import numpy as np
import pytest
from PIL import Image

from ftbnn_jax.data import batches as batches_lib
from ftbnn_jax.data import sets
from ftbnn_jax.deploy import export, verify
from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.deploy.c import build, generate
from ftbnn_jax.deploy.c import export as c_export
from ftbnn_jax.deploy.c import verify as c_verify
from ftbnn_jax.deploy.pixels import Pixels
from ftbnn_jax.nn import architectures

c_programs.need_compiler()

# Twenty sizes from 30x50 to 700x500, of every ratio between.
_SIZES = [(30, 50), (700, 500), *((40 + 37 * i, 50 + 29 * ((7 * i) % 18)) for i in range(18))]


def _encoded(mode):
    """40 images: a JPEG, or a PNG, and the other of each size."""
    rng = np.random.default_rng(0)
    encoded = []
    for number, (height, width) in enumerate(_SIZES * 2):
        coarse = rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG" if (number + number // 20) % 2 else "PNG")
        encoded.append(buffer.getvalue())
    return encoded


def _batches(augment, split, config):
    """What evaluation sees, beside the images as they are stored."""
    if augment == "resized_crop":
        return batches_lib.with_decoded(split, batches_lib.eval_batches(split, config))
    # Sets of images of one size are held in memory.
    whole = [
        sets.ArraySplit(batch["decoded"][0][None], np.zeros(1, np.int32), ("only",))
        for batch in _batches("resized_crop", split, dataclasses.replace(config, batch_size=1))
    ]
    return (
        batch
        for one in whole
        for batch in batches_lib.with_decoded(one, batches_lib.eval_batches(one, config))
    )


@pytest.mark.parametrize("channels", [1, 3], ids=["gray", "colour"])
@pytest.mark.parametrize("augment", ["resized_crop", "none"])
def test_evaluation_runtime_and_c_see_the_same(tmp_path, write_split, augment, channels):
    spec = architectures.small((1, 1), 8)
    config, variables, artifact = networks.build(spec, 24, channels=channels, augment=augment)
    config = dataclasses.replace(config, batch_size=20 if augment == "resized_crop" else 1)
    split = write_split(tmp_path, _encoded("L" if channels == 1 else "RGB"))
    split = dataclasses.replace(split, channels=channels)
    batches = list(_batches(augment, split, config))
    assert len({x.shape for batch in batches for x in batch["decoded"]}) == 20
    values = 40 * 24 * 24 * channels
    net = runtime_lib.Runtime(artifact)

    pixels = Pixels(net.pixels)
    in_jax = verify.verify(export.network(config), variables, net, pixels.checked(batches))
    assert (pixels.compared, pixels.differing, in_jax.differing) == (values, 0, 0)
    assert in_jax.images == in_jax.agreeing == 40
    # Nothing but the files of an export.
    files = {name: text.encode() for name, text in generate.files(artifact).items()}
    c_export.write(tmp_path / "c", files)
    in_c = c_verify.compare(tmp_path / "c", net, batches, build.FLAGS[:0])
    assert (in_c.pixels, in_c.pixels_differing, in_c.logits_differing) == (values, 0, 0)
    assert in_c.images == in_c.agreeing == 40
    decoded = [x for batch in batches for x in batch["decoded"]]
    evaluated = np.concatenate([batch["image"] for batch in batches])
    expected = np.asarray(net.forward(evaluated)).argmax(-1)
    np.testing.assert_array_equal(net.predict(decoded), expected)
