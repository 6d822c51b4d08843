"""Folders of images: which files are taken, as which classes, and what is said of the others."""

import dataclasses
import os
import time

import numpy as np
import pytest
from PIL import Image

from ftbnn_jax import config as config_lib
from ftbnn_jax.data import automatic, file_index, folder, lazy, sets
from ftbnn_jax.data import batches as batches_lib
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures

CONFIG = config_lib.TrainConfig(
    architectures.small((1,), 8),
    image_size=8,
    num_classes=0,
    batch_size=3,
    augment="none",
    flip=False,
    pixel_mean=(),
    pixel_std=(),
)


def draw(path, value=0, size=(8, 8), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


def opened(root, train=True, **fields):
    fields = {"dataset": f"folder:{root}", **fields}
    return sets.open_split(dataclasses.replace(CONFIG, **fields), train=train)


def refusal(root, train=True, **fields):
    with pytest.raises(UserError) as error:
        opened(root, train, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def root(tmp_path):
    """Six images to train on and two to test on, in folders with names of all kinds."""
    root = tmp_path / "my images"
    for number, name in enumerate(
        ("train/dog/b.PNG", "train/dog/a/c.jpg", "train/cat/1.webp", "train/cat/2.bmp")
    ):
        draw(root / name, 10 * number)
    draw(root / "train/Ähre/x y.gif", 40)
    draw(root / "train/Ähre/.hidden.png", 250)
    draw(root / "train/.git/z.png", 250)
    (root / "train/dog/notes.txt").write_text("none")
    os.symlink("2.bmp", root / "train/cat/link.bmp")
    draw(root / "Test/dog/1.png", 60)
    draw(root / "Test/cat/1.png", 70)
    return root


def test_images_and_labels(root, capsys):
    train, test = opened(root), opened(root, train=False)
    assert train.class_names == test.class_names == ("cat", "dog", "Ähre")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 2]
    # cat/1.webp, cat/2.bmp and the link to it, dog/b.PNG, dog/a/c.jpg, and the corn.
    np.testing.assert_allclose(train.images[:, 0, 0, 0], [20, 30, 30, 0, 10, 40], atol=1)
    assert test.labels.tolist() == [0, 1]
    assert test.images[:, 0, 0, 0].tolist() == [70, 60]
    warnings = capsys.readouterr().err
    assert f"{root}/train/dog/notes.txt: none of .jpg" in warnings
    assert "no image for evaluation is of Ähre" in warnings


def test_images_of_other_sizes_are_resized_once_as_evaluation_does(tmp_path):
    for name in "ab":
        draw(tmp_path / name / "1.png", 90, (20, 10))
        draw(tmp_path / name / "2.png", 90, (6, 7))
    config = dataclasses.replace(CONFIG, dataset=f"folder:{tmp_path}", eval_share=0.01)
    split = sets.open_split(config, train=True)
    assert split.images.shape == (4, 8, 8, 1)
    assert split.whole(0).shape == (10, 20, 1)
    np.testing.assert_array_equal(split.images[0], config.preprocessing(1).pixels(split.whole(0)))


def test_no_image_moves_when_others_come(tmp_path):
    """With a share of a fifth, of 200 images 40 and three standard deviations, 17, at the most."""
    for number in range(100):
        draw(tmp_path / "a" / f"{number}.png")
        draw(tmp_path / "b" / f"{number}.png")

    def names(train):
        split = opened(tmp_path, train, eval_share=0.2)
        return {split.name(i) for i in range(split.num_examples)}

    train, test = names(True), names(False)
    assert len(train | test) == 200 and not train & test
    assert 40 - 17 <= len(test) <= 40 + 17
    assert {os.path.basename(os.path.dirname(name)) for name in test} == {"a", "b"}
    for number in range(20):
        draw(tmp_path / "a" / f"new {number}.png")
    assert train <= names(True) and test <= names(False)
    moved = tmp_path.with_name("elsewhere")
    tmp_path.rename(moved)
    split = opened(moved, False, eval_share=0.2)
    there = {split.name(i).replace("elsewhere", tmp_path.name) for i in range(split.num_examples)}
    assert test <= there


def test_what_is_no_set_is_refused_in_one_line(tmp_path):
    def told(name, train=True, **fields):
        return refusal(tmp_path / name, train, **fields)

    assert told("nowhere").endswith("nowhere': no such folder")
    assert refusal("", dataset="folder:").endswith("must be folder:PATH, the folder of the images")
    assert "must be on this machine" in refusal("", dataset="folder:gs://bucket/x")
    draw(tmp_path / "flat" / "1.png")
    assert told("flat").endswith("must hold a folder of images for each class, and at least two")
    draw(tmp_path / "above" / "set" / "train" / "a" / "1.png")
    assert told("above").endswith("there is set, which could be the data set itself")
    draw(tmp_path / "only test" / "test" / "a" / "1.png")
    assert told("only test").endswith("holds test and no train beside it")
    draw(tmp_path / "empty" / "train" / "a" / "1.png")
    (tmp_path / "empty" / "train" / "b").mkdir()
    assert told("empty").startswith(f"{tmp_path}/empty/train/b: holds no image (.jpg")
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png"):
        draw(tmp_path / "other" / name)
    assert told("other", False) == (
        f"{tmp_path}/other/val/c: no such class is in {tmp_path}/other/train; there are a, b"
    )
    assert told("other", False, eval_split="tset").startswith("config.eval_split='tset': ")
    assert told("other", num_classes=1) == f"config.num_classes=1: folder:{tmp_path}/other has 2"
    (tmp_path / "file").write_text("")
    assert told("file").endswith("is no folder")


@pytest.mark.parametrize("augment", ["none", "resized_crop"])
def test_files_that_are_no_images_are_named_and_passed_over(root, capsys, augment):
    (root / "train/cat/1.webp").write_bytes(b"no image")
    (root / "train/cat/0.png").write_bytes(b"")
    config = dataclasses.replace(CONFIG, dataset=f"folder:{root}", augment=augment)

    def labels(config):
        split = sets.open_split(config, train=True)
        batches = batches_lib.train_batches(split, config, first_step=0, last_step=7)
        return np.concatenate([b["label"] for b in batches]), split.num_examples

    found, count = labels(config)
    error = capsys.readouterr().err
    assert f"{root}/train/cat/1.webp: corrupt (no image in a format of JPEG" in error
    assert f"{root}/train/cat/0.png: corrupt (an image of 0 bytes); passed over" in error
    assert set(found) == {0, 1, 2}
    assert count == (5 if augment == "none" else 7)
    with pytest.raises(UserError, match="max_corrupt_records=1 allows no more: mend or remove these"):
        labels(dataclasses.replace(config, max_corrupt_records=1))


def test_files_that_cannot_be_read_count_as_corrupt(root, monkeypatch):
    split = folder.open_split(dataclasses.replace(CONFIG, dataset=f"folder:{root}"), train=True)
    os.remove(split.name(0))
    with pytest.raises(ValueError, match="No such file"):
        split.example(0)


def test_colours_are_found(tmp_path):
    for name in "abc":
        draw(tmp_path / name / "1.png", 7)
    assert opened(tmp_path, eval_share=0.01).channels == 1
    draw(tmp_path / "c" / "2.png", (7, 8, 9), mode="RGB")
    assert opened(tmp_path, eval_share=0.01).channels == 3


def test_without_tensorflow_the_same_pixels_are_evaluated_and_crops_are_a_function_of_the_step(
    root, monkeypatch
):
    rng = np.random.default_rng(0)
    for path in root.glob("*/*/*.png"):
        Image.fromarray(rng.integers(0, 256, (31, 40, 3), np.uint8)).save(path)
    for number in range(40):
        pixels = rng.integers(0, 256, (20 + number, 30, 3), np.uint8)
        Image.fromarray(pixels).save(root / "train" / "cat" / f"{number}.jpg")
    config = dataclasses.replace(CONFIG, dataset=f"folder:{root}", augment="resized_crop", flip=True)
    test, train = (sets.open_split(config, train=t) for t in (False, True))
    expected = list(batches_lib.eval_batches(test, config))
    monkeypatch.setattr(lazy, "has_tensorflow", lambda: False)
    for batch, other in zip(batches_lib.eval_batches(test, config), expected, strict=True):
        for key, value in other.items():
            np.testing.assert_array_equal(batch[key], value)

    def steps(first, last, **hosts):
        return list(batches_lib.train_batches(train, config, first_step=first, last_step=last, **hosts))

    whole = steps(0, 4)
    for batch, other in zip(steps(2, 4), whole[2:], strict=True):
        np.testing.assert_array_equal(batch["image"], other["image"])
    parts = [steps(0, 4, process_index=i, process_count=3) for i in range(3)]
    for step, batch in enumerate(whole):
        joined = np.concatenate([part[step]["image"] for part in parts])
        np.testing.assert_array_equal(joined, batch["image"])


@pytest.mark.parametrize("kept", [False, True])
def test_an_index_is_used_as_long_as_no_folder_has_changed(root, tmp_path, monkeypatch, kept):
    monkeypatch.setattr(file_index, "_COARSE_NS", 0)
    workdir = tmp_path / "run"
    workdir.mkdir()
    directory = str(root / "train")
    looks = []
    look = file_index._look_through
    monkeypatch.setattr(file_index, "_look_through", lambda d: looks.append(d) or look(d))

    def open_again():
        if kept:
            file_index._RECENT.clear()
        index = file_index.open_index(directory, str(workdir))
        index.save(str(workdir))
        return {index.path(row) for row in range(index.num_files)}

    before = open_again()
    assert before == open_again() and len(looks) == 1
    draw(root / "train" / "dog" / "a" / "new.png")
    assert open_again() - before == {f"{directory}/dog/a/new.png"}
    assert len(looks) == 2
    # A file that gives way to another one with the folder's time put back.
    times = os.stat(root / "train" / "cat")
    os.rename(root / "train" / "cat" / "1.webp", root / "train" / "cat" / "3.webp")
    os.utime(root / "train" / "cat", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert f"{directory}/cat/3.webp" in open_again()
    if kept:
        (file,) = workdir.iterdir()
        file.write_bytes(file.read_bytes()[:-100])
        open_again()
        assert len(looks) == 4


def test_a_folder_that_has_just_changed_is_looked_at_again(root):
    index = file_index.open_index(str(root / "train"))
    assert not index.is_current()
    later = dataclasses.replace(index, looked_at=time.time_ns() + 10**10)
    assert later.is_current()


def test_links_in_a_circle_end(root, capsys):
    os.symlink("..", root / "train" / "cat" / "loop")
    os.symlink("nowhere", root / "train" / "cat" / "gone.png")
    assert opened(root).num_examples == 6
    error = capsys.readouterr().err
    assert "cat/loop: a link to a folder that it is in; passed over" in error
    assert "cat/gone.png: a link to nowhere; passed over" in error


def test_what_the_data_say_is_filled_in(tmp_path):
    """Half of the pixels of one image are 0 and half 100; those of the other are all 150."""
    draw(tmp_path / "a" / "1.png", 150, (30, 20))
    halves = np.repeat(np.array([[0], [100]], np.uint8), [4, 4], 0).repeat(8, 1)
    (tmp_path / "b").mkdir()
    Image.fromarray(halves).save(tmp_path / "b" / "1.png")
    config = dataclasses.replace(CONFIG, dataset=f"folder:{tmp_path}", eval_share=0.001)
    assert config.from_data == ("num_classes", "pixel_mean", "pixel_std")
    for augment in ("none", "resized_crop"):
        changed = dataclasses.replace(config, augment=augment)
        found = automatic.from_split(changed, sets.open_split(changed, train=True))
        # Means of 150 and 50; squares of 22,500 and 5,000, so 13,750 - 100**2.
        assert (found.num_classes, found.pixel_mean) == (2, (100.0,))
        assert found.pixel_std == (round(3750**0.5, 2),)
        assert found.from_data == ()
    given = dataclasses.replace(config, pixel_mean=(1.0,), num_classes=5)
    found = automatic.from_split(given, sets.open_split(given, train=True))
    assert (found.num_classes, found.pixel_mean, found.pixel_std) == (5, (1.0,), (round(3750**0.5, 2),))
    assert automatic.from_saved(config, found.to_dict() | {"pixel_mean": [1.0]}).pixel_mean == (1.0,)


def test_digits_have_what_the_quickstart_has_rounded():
    config = dataclasses.replace(CONFIG, dataset="digits")
    found = automatic.from_split(config, sets.open_split(config, train=True))
    assert found.num_classes == 10
    assert abs(found.pixel_mean[0] - 73) < 1 and abs(found.pixel_std[0] - 90) < 1
