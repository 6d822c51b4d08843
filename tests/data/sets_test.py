"""Which sets are taken, and what is said of those that are not."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from ftbnn_jax import config as config_lib
from ftbnn_jax.data import batches as batches_lib
from ftbnn_jax.data import sets, tfrecords
from ftbnn_jax.data.lazy import tfds
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures

CONFIG = config_lib.TrainConfig(
    architectures.small((1,), 8),
    dataset="own",
    image_size=4,
    num_classes=10,
    batch_size=3,
    augment="none",
    pixel_mean=(0.0,),
    pixel_std=(1.0,),
)
LABEL = tfds.features.ClassLabel(num_classes=10)
IMAGE = tfds.features.Image(shape=(4, 4, 1))
AUGMENTS = ("none", "resized_crop")


def png(value, size=(4, 4), mode="L"):
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, "PNG")
    return buffer.getvalue()


def examples(labels, image=None):
    return [{"image": image or png(10 * i), "label": label} for i, label in enumerate(labels)]


def own(directory, **fields):
    return dataclasses.replace(CONFIG, data_dir=str(directory), **fields)


def refusal(config, train=False):
    with pytest.raises(UserError) as error:
        sets.open_split(config, train=train)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("~nobody123", "~nobody123: there is no home directory"),
        ("foo://x", "foo://x: must be file:///PATH"),
        ("/dev/null", "/dev/null: is no directory"),
    ],
)
@pytest.mark.parametrize("name", ["config.data_dir", "TFDS_DATA_DIR"])
def test_a_directory_that_is_none_is_named(monkeypatch, name, path, told):
    monkeypatch.setenv("TFDS_DATA_DIR", path)
    config = dataclasses.replace(CONFIG, data_dir=path if name == "config.data_dir" else "")
    assert refusal(config).startswith(f"{name}={told}")


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([3, -1, 2, 10, 9], "2 of 5 labels looked at are outside 0 to 9, the first is -1 ("),
        ([0, 1, 2, 3, 10], "1 of 5 labels looked at are outside 0 to 9, the first is 10 ("),
        ([-1] * 4, "4 of 4 labels looked at are outside 0 to 9, the first is -1 ("),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, write_set, augment, labels, told):
    place = write_set(tmp_path, {"train": examples(labels), "test": examples(labels)})
    first = next(i for i, label in enumerate(labels) if not 0 <= label < 10)
    for field, train in (("train_split='train'", True), ("eval_split='test'", False)):
        text = refusal(own(tmp_path, augment=augment), train)
        assert text.startswith(f"config.{field}: {told}")
        assert f"{place}/own-{field.split(chr(39))[1]}.tfrecord-00000-of-00001, record {first})" in text


def test_a_label_beyond_those_looked_at_is_refused_when_it_is_read(tmp_path, write_set, monkeypatch):
    monkeypatch.setattr(sets, "_LOOK", 4)
    place = write_set(tmp_path, {s: examples([0, 1, 2, 3, 4, 10]) for s in ("train", "test")})
    config = own(tmp_path, augment="resized_crop")
    for train in (True, False):
        split = sets.open_split(config, train=train)
        if train:
            batches = batches_lib.train_batches(split, config, first_step=0, last_step=2)
        else:
            batches = batches_lib.eval_batches(split, config)
        with pytest.raises(UserError, match=rf"{place}/own-t\S+, record 5: label 10 is outside 0 to 9"):
            list(batches)


TAKEN = {
    "two": ({"image": IMAGE, "label": LABEL}, ("image", "label")),
    "three": ({"image": IMAGE, "label": LABEL, "weight": np.float32}, ("image", "label", "weight")),
    "none": ({"image": IMAGE, "label": LABEL, "id": np.int64}, None),
    "nested keys": (
        {"image": IMAGE, "label": LABEL, "mask": tfds.features.Image()},
        ({"pixels": "image", "id": "id"}, "label"),
    ),
    "one of two": ({"image": IMAGE, "label": LABEL, "coarse": LABEL}, ("image", "label")),
    "any channels": (
        {"image": tfds.features.Image(shape=(4, 4, None)), "label": LABEL},
        ("image", "label"),
    ),
}


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("kind", TAKEN)
def test_image_and_label_are_found(tmp_path, write_set, kind, augment):
    features, keys = TAKEN[kind]
    write_set(tmp_path, {"test": examples([7, 0, 9])}, features, keys)
    config = own(tmp_path, augment=augment)
    (batch,) = batches_lib.eval_batches(sets.open_split(config, train=False), config)
    assert batch["label"].tolist() == [7, 0, 9]
    channels = 3 if kind == "any channels" else 1
    expected = np.broadcast_to(np.array([0, 10, 20]).reshape(3, 1, 1, 1), (3, 4, 4, channels))
    np.testing.assert_array_equal(batch["image"], expected)


def test_image_and_label_are_found_in_dictionaries(tmp_path, write_set):
    features = {"inputs": {"image": IMAGE, "id": np.int64}, "target": {"label": LABEL}}
    rows = [{"inputs/image": png(5), "target/label": 6}] * 2
    write_set(tmp_path, {"test": rows}, features, ("inputs", "target"))
    split = sets.open_split(own(tmp_path), train=False)
    assert (split.labels.tolist(), split.images.min(), split.images.max()) == ([6, 6], 5, 5)


REFUSED = {
    "16 bits": (
        {"image": tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16), "label": LABEL},
        ["'image' is uint16 of shape (4, 4, 1); must be uint8"],
    ),
    "floats": (
        {"image": tfds.features.Image(shape=(4, 4, 1), dtype=np.float32), "label": LABEL},
        ["'image' is float32 of shape (4, 4, 1); must be uint8"],
    ),
    "alpha": (
        {"image": tfds.features.Image(shape=(4, 4, 4)), "label": LABEL},
        ["of shape (4, 4, 4)", "1 or 3 channels"],
    ),
    "gray and alpha": (
        {"image": tfds.features.Image(shape=(4, 4, 2)), "label": LABEL},
        ["of shape (4, 4, 2)", "1 or 3 channels"],
    ),
    "frames": (
        {"image": tfds.features.Image(shape=(None, 4, 4, 3)), "label": LABEL},
        ["of shape (None, 4, 4, 3)", "height, width"],
    ),
    "video": (
        {"image": tfds.features.Video(shape=(None, 4, 4, 3)), "label": LABEL},
        ["images: none; class labels: label"],
    ),
    "no label": ({"image": IMAGE, "id": np.int64}, ["images: image; class labels: none"]),
    "number as label": ({"image": IMAGE, "label": np.int64}, ["class labels: none"]),
    "several images": ({"a": IMAGE, "b": IMAGE, "label": LABEL}, ["images: a, b; class labels: label"]),
    "several labels": ({"a": IMAGE, "x": LABEL, "y": LABEL}, ["images: a; class labels: x, y"]),
    "sizes": (
        {"image": tfds.features.Image(shape=(None, None, 1)), "label": LABEL},
        ["config.augment='none'", "differ in size"],
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_sets_of_another_kind_are_refused(tmp_path, write_set, kind):
    features, words = REFUSED[kind]
    write_set(tmp_path, {"test": examples([1])}, features, keys=None)
    text = refusal(own(tmp_path))
    for word in ("config.", *words):
        assert word in text


@pytest.mark.parametrize(
    ("split", "told"),
    [
        ("test[:0%]", "no images of own are in it"),
        ("empty", "no images of own are in it"),
        ("test[2:2]", "no images of own are in it"),
        ("tset", "has the splits test (3 images), empty (0 images)"),
        ("test[", "has the splits test (3 images), empty (0 images)"),
        ("test[:300%]", "has the splits test (3 images), empty (0 images)"),
        ("test[7:99]", "has the splits test (3 images), empty (0 images)"),
        ("test+", "has the splits test (3 images), empty (0 images)"),
    ],
)
@pytest.mark.parametrize("augment", AUGMENTS)
def test_splits_without_images_are_refused(tmp_path, write_set, split, told, augment):
    write_set(tmp_path, {"test": examples([1, 2, 3]), "empty": []})
    text = refusal(own(tmp_path, eval_split=split, augment=augment))
    assert text.startswith(f"config.eval_split={split!r}: ")
    assert told in text


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_split_without_a_readable_image_is_refused_at_once(tmp_path, write_set, augment):
    write_set(tmp_path, {"test": examples([1, 2], b"no image")})
    text = refusal(own(tmp_path, augment=augment))
    for word in ("own-test.tfrecord-00000-of-00001, record ", "no image in a format of JPEG, PNG"):
        assert word in text


def test_images_in_memory_that_are_corrupt_are_left_out(tmp_path, write_set, capfd):
    rows = examples(range(5))
    rows[1]["image"] = png(3, (5, 4))
    rows[3]["image"] = rows[3]["image"][:40]
    write_set(tmp_path, {"test": rows})
    split = sets.open_split(own(tmp_path), train=False)
    assert split.labels.tolist() == [0, 2, 4]
    assert split.images[:, 0, 0, 0].tolist() == [0, 20, 40]
    first, second = capfd.readouterr().err.splitlines()
    assert "record 1: corrupt (an image of 4 x 5 pixels in a set of 4 x 4); passed over" in first
    assert "record 3: corrupt (" in second
    assert "config.max_corrupt_records=1" in refusal(own(tmp_path, max_corrupt_records=1))


def shorten(file):
    file.write_bytes(file.read_bytes()[:-1])


def repeat(file):
    file.write_bytes(2 * file.read_bytes())


DAMAGE = {
    "shorter": ("own-test.tfrecord-00000-of-00001", shorten, "00001: truncated at record 2"),
    "longer": ("own-test.tfrecord-00000-of-00001", repeat, "00001: goes on after the 3 records"),
    "missing": ("own-test.tfrecord-00000-of-00001", lambda f: f.unlink(), "No such file"),
    "no info": ("dataset_info.json", lambda f: f.write_text("{"), "cannot be opened in"),
    "other info": ("dataset_info.json", lambda f: f.write_text('{"name": 3}'), "cannot be opened in"),
    "empty info": ("dataset_info.json", lambda f: f.write_text(""), "cannot be opened in"),
    "no features": ("features.json", lambda f: f.write_text("[]"), "cannot be opened in"),
    "without features": ("features.json", lambda f: f.unlink(), "config.dataset='own'"),
    "a directory": ("dataset_info.json", lambda f: (f.unlink(), f.mkdir()), "config.dataset='own'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("augment", AUGMENTS)
def test_what_is_damaged_is_named(tmp_path, write_set, kind, augment):
    name, damage, told = DAMAGE[kind]
    damage(write_set(tmp_path, {"test": examples([1, 2, 3])}) / name)
    assert told in refusal(own(tmp_path, augment=augment))


def test_a_file_that_must_not_be_read_is_named(tmp_path, write_set, monkeypatch):
    """The system's refusal is imitated: a test that runs as root may read everything."""
    write_set(tmp_path, {"test": examples([1])})
    config = own(tmp_path)

    def denied(path, flags):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(tfrecords.os, "open", denied)
    assert refusal(config).endswith("own-test.tfrecord-00000-of-00001: Permission denied")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dataset": "fake/digits"}, ["config.dataset='fake/digits'", "'fake'"]),
        (
            {"dataset": "digits", "eval_split": "test[:5]"},
            ["config.eval_split='test[:5]'", "train, test"],
        ),
        ({"dataset": "digits", "num_classes": 9}, ["config.num_classes=9", "has 10"]),
        ({"dataset": "fake", "pixel_mean": (1.0, 2.0)}, ["config.pixel_mean", "3 channel"]),
    ],
)
def test_impossible_options_of_built_in_sets(fields, words):
    text = refusal(dataclasses.replace(CONFIG, **fields))
    for word in words:
        assert word in text
