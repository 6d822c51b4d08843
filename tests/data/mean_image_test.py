"""A mean image: computed from the training images, and subtracted by all that see images."""

import dataclasses
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from ftbnn_jax import config as config_lib
from ftbnn_jax.data import mean_image, sets
from ftbnn_jax.deploy import export, runtime, verify
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures
from ftbnn_jax.train import identity

_SIZE = 8


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Six images to train on and one to test on, of the network's own size, by class and number."""
    root = tmp_path_factory.mktemp("mean") / "my images"
    drawn = np.random.default_rng(0).integers(0, 256, (7, _SIZE, _SIZE, 3), np.uint8)
    for number, pixels in enumerate(drawn):
        folder = root / ("train" if number < 6 else "test") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return root, drawn[:6]


@pytest.fixture
def config(images):
    return config_lib.TrainConfig(
        architectures.small((1,), 8),
        dataset=f"folder:{images[0]}",
        image_size=_SIZE,
        num_classes=2,
        batch_size=4,
        augment="none",
        pixel_mean=(1.0, 2.0, 3.0),
    )


@pytest.fixture
def written(images, config, tmp_path, capsys):
    """The path of the mean image, which the command has written."""
    text = (
        "from ftbnn_jax import config\n"
        f"def get_config(): return config.TrainConfig.from_dict({config.to_dict()!r}).to_dict()\n"
    )
    (tmp_path / "own.py").write_text(text)
    assert mean_image.main([f"--config={tmp_path / 'own.py'}", "--config.seed=3"]) == 0
    told = capsys.readouterr().out
    path = re.search("--config.mean_image=(.+)", told)[1]
    assert path == str(images[0] / f"mean_image_{_SIZE}.npy")
    assert "the mean of 6 images" in told
    return path


def test_it_is_the_mean_of_each_pixel(images, written, config):
    found = np.load(written)
    assert (found.dtype, found.shape) == (np.float32, (_SIZE, _SIZE, 3))
    np.testing.assert_allclose(found, images[1].astype(float).mean(0), rtol=1e-6)
    # The data are the same with the file among them.
    assert sets.open_split(config, train=True).num_examples == 6


def test_training_and_the_packed_network_subtract_it(images, written, config):
    config = dataclasses.replace(config, mean_image=written)
    made = export.networks.make(config)
    variables = made.init(jax.random.key(0), np.zeros((1, _SIZE, _SIZE, 3), np.float32))
    pixels = images[1]
    x = (pixels.astype(np.float32) - np.load(written)) / np.float32(1.0)
    expected = made(variables, x)
    function = export.network(config)
    np.testing.assert_array_equal(function(variables, pixels), expected)
    packed = export.to_artifact(config, variables, {"channels": 3, "class_names": ["a", "b"]}, 1)
    np.testing.assert_allclose(
        packed.preprocessing.mean, images[1].astype(float).mean((0, 1, 2)), rtol=1e-6
    )
    net = runtime.Runtime(packed)
    assert verify.verify(function, variables, net, [pixels]).differing == 0
    np.testing.assert_allclose(net.logits(list(pixels)), expected, rtol=1e-4, atol=1e-4)
    # The channels' means, which the config has beside it, would give something else.
    shortcut = export.network(dataclasses.replace(config, mean_image=""))(variables, pixels)
    assert np.abs(shortcut - expected).max() > 1e-2


def test_another_image_is_refused(images, written, config, tmp_path):
    config = dataclasses.replace(config, mean_image=written)
    saved = identity.describe(config, sets.open_split(config, train=True))
    moved = tmp_path / "elsewhere.npy"
    shutil.copy(written, moved)
    identity.check("the run", saved, dataclasses.replace(config, mean_image=str(moved)))
    other = tmp_path / "other.npy"
    np.save(other, np.load(written) + 1)
    for use in ("use", "resume"):
        for path in (str(other), ""):
            with pytest.raises(UserError, match=r"^the run: was trained with a mean image of digest="):
                identity.check("the run", saved, dataclasses.replace(config, mean_image=path), use=use)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file"),
        (b"P6", "is no file of NumPy's"),
        (np.zeros((_SIZE, _SIZE, 3)), "must be finite float32 .* is float64"),
        (np.full((_SIZE, _SIZE, 3), np.nan, np.float32), "must be finite float32"),
        (np.zeros((_SIZE, _SIZE + 1, 3), np.float32), "is of 8 x 9 pixels; config.image_size=8"),
        (np.zeros((_SIZE, _SIZE, 1), np.float32), r"has 1 channel\(s\); folder:.* has 3"),
    ],
    ids=["missing", "other", "float64", "nan", "size", "gray"],
)
def test_what_is_no_mean_image_is_refused(config, tmp_path, content, told):
    path = tmp_path / "mean.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(UserError, match=told) as error:
        sets.open_split(dataclasses.replace(config, mean_image=str(path)), train=True)
    assert str(error.value).startswith(f"config.mean_image={path}: ")


def test_a_set_without_files_needs_a_place(capsys):
    with pytest.raises(UserError, match=r"config\.dataset='digits': has no files"):
        mean_image.main(["--config=quickstart"])
