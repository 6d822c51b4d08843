"""Preparing sets: what is refused before the work, and that nothing half done is taken for whole."""

import dataclasses
import fcntl
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest

from ftbnn_jax import command, errors
from ftbnn_jax.data import imagenet, prepare
from ftbnn_jax.data.lazy import tfds

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"


def _write(path, names):
    """A tar archive of members of 700 bytes: a block for the header and two for the content each."""
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 700
            tar.addfile(member, io.BytesIO(bytes([1]) * 700))


@pytest.fixture
def manual_dir(tmp_path):
    directory = tmp_path / "manual dir"
    directory.mkdir()
    _write(directory / TRAIN, ["n01440764.tar", "n01443537.tar"])
    _write(directory / VALIDATION, [f"ILSVRC2012_val_{i:08d}.JPEG" for i in (2, 1, 3)])
    return directory


def _cut(size):
    return lambda path: os.truncate(path, size)


def _names(*names):
    return lambda path: _write(path, names)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        (TRAIN, pathlib.Path.unlink, "not found; image-net.org"),
        (TRAIN, lambda p: p.rename(p.with_name(f"{TRAIN}.gz")), f"'{TRAIN}.gz' is there"),
        (VALIDATION, lambda p: p.rename(p.with_name("ILSVRC2012_val.tar")), "'ILSVRC2012_val.tar' is"),
        # A member is 512 + 700 bytes, filled up to 1536. In content, header, and between members.
        (TRAIN, _cut(1536 + 600), "cut off, 2,136 bytes instead of 147,897,477,120"),
        (TRAIN, _cut(1536 + 100), "cut off, 1,636 bytes instead of 147,897,477,120"),
        (TRAIN, _cut(2 * 1536), "cut off, 3,072 bytes"),
        (VALIDATION, _cut(3 * 1536 + 512), "cut off, 5,120 bytes instead of 6,744,924,160"),
        (TRAIN, _cut(0), "no tar archive, 0 bytes"),
        (TRAIN, lambda p: p.write_bytes(b"<html>" * 1000), "no tar archive, 6,000 bytes"),
        (TRAIN, _names(), "holds nothing, and should hold one archive a class"),
        (TRAIN, _names("n01440764.tar", "train/n01443537.tar"), "holds train/n01443537.tar, and should"),
        (VALIDATION, _names("ILSVRC2012_val_00000001.JPEG", "a.JPEG"), "holds a.JPEG, and should"),
        (
            VALIDATION,
            _names("ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000003.JPEG"),
            "lacks ILSVRC2012_val_00000002.JPEG",
        ),
    ],
)
def test_unfit_archive_is_refused(manual_dir, tmp_path, name, damage, words):
    path = manual_dir / name
    damage(path)
    with pytest.raises(errors.UserError) as caught:
        prepare.prepare("imagenet2012", manual_dir, tmp_path / "data")
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert "\n" not in message
    assert not (tmp_path / "data").exists()


def test_full_disk_is_seen_beforehand(manual_dir, tmp_path, monkeypatch):
    needed = sum(path.stat().st_size for path in manual_dir.iterdir())
    usage = shutil.disk_usage(tmp_path)._replace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(errors.UserError, match=f"{needed - 1:,} bytes free, needs {needed:,}"):
        prepare.prepare("imagenet2012", manual_dir, tmp_path / "data")


def test_official_archives_are_called_whole_and_others_a_part(manual_dir, tmp_path, monkeypatch, capsys):
    train, validation = imagenet.ARCHIVES
    size = (manual_dir / TRAIN).stat().st_size
    official = dataclasses.replace(train, num_bytes=size)
    monkeypatch.setattr(imagenet, "ARCHIVES", (official, validation))
    prepare.prepare("imagenet2012", manual_dir, tmp_path / "data", dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    size = (manual_dir / VALIDATION).stat().st_size
    assert lines == [
        f"{manual_dir / TRAIN}: whole",
        f"{manual_dir / VALIDATION}: a part of ImageNet: {size:,} bytes instead of 6,744,924,160",
        f"would prepare {tmp_path / 'data' / 'imagenet2012' / '5.1.0'}",
    ]
    assert not (tmp_path / "data").exists()


def test_killed_then_prepared_then_left_alone(imagenet_manual_dir, tmp_path, repository, capsys):
    """The real builder on real images: 80 to train on and 20 to validate, and no network."""
    module = [sys.executable, "-m", "ftbnn_jax.data.prepare", "imagenet2012"]
    process = subprocess.Popen(
        [*module, f"--manual_dir={imagenet_manual_dir}", f"--data_dir={tmp_path}"],
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    parent = tmp_path / "imagenet2012"
    try:
        while process.poll() is None and not list(parent.glob("incomplete.*")):
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    (stale,) = parent.iterdir()

    prepare.prepare("imagenet2012", imagenet_manual_dir, tmp_path)
    output = capsys.readouterr().out
    assert f"removing {stale}" in output
    assert "a part of ImageNet: 3,388,416 bytes instead of 147,897,477,120" in output
    assert "prepared, 80 train images, 20 validation images" in output
    (prepared,) = parent.iterdir()
    times = {path: path.stat().st_mtime_ns for path in prepared.iterdir()}

    # The archives are not needed any more.
    prepare.prepare("imagenet2012", tmp_path / "nowhere", tmp_path)
    output = capsys.readouterr().out
    assert output == f"{prepared}: already prepared, 80 train images, 20 validation images\n"
    assert times == {path: path.stat().st_mtime_ns for path in prepared.iterdir()}

    (records,) = prepared.glob("*-validation.tfrecord*")
    records.unlink()
    with pytest.raises(errors.UserError, match=f"{prepared}: lacks {records.name}; remove"):
        prepare.prepare("imagenet2012", imagenet_manual_dir, tmp_path)


@pytest.mark.parametrize("info", ["{", "", '{"name": 3}', "{}"])
def test_damaged_metadata_is_one_line(tmp_path, info):
    place = tmp_path / "imagenet2012" / "5.1.0"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text(info)
    with pytest.raises(
        errors.UserError, match=f"{place.parent}: cannot be opened: .*; remove"
    ) as caught:
        prepare.prepare("imagenet2012", tmp_path / "manual", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_directory_that_must_not_be_read_is_named(tmp_path, monkeypatch, capsys):
    """The system's refusal is imitated: a test that runs as root may read everything."""

    def denied(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "is_file", denied)
    arguments = [
        "imagenet2012",
        f"--manual_dir={tmp_path / 'manual'}",
        f"--data_dir={tmp_path / 'data'}",
    ]
    assert command.run(prepare.main, arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "Permission denied" in line and TRAIN in line


def test_failure_half_way_is_one_line_and_leaves_nothing(manual_dir, tmp_path):
    """Archives whose members only look like archives from outside."""
    with pytest.raises(errors.UserError, match="preparing failed: invalid header") as caught:
        prepare.prepare("imagenet2012", manual_dir, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "data" / "imagenet2012").iterdir()) == []


def test_two_at_a_time_are_refused(manual_dir, tmp_path):
    (tmp_path / "data" / "imagenet2012").mkdir(parents=True)
    descriptor = os.open(tmp_path / "data" / "imagenet2012", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(errors.UserError, match="imagenet2012: being prepared by another process"):
            prepare.prepare("imagenet2012", manual_dir, tmp_path / "data")
    finally:
        os.close(descriptor)


class TinyShapes(tfds.core.GeneratorBasedBuilder):
    """Three gray images in two classes, made without a network out of the numbers in a file."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Write numbers
    into numbers.txt."""

    def _info(self):
        image = tfds.features.Image(shape=(4, 4, 1))
        label = tfds.features.ClassLabel(names=["a", "b"])
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return self.dataset_info_from_configs(features=features, supervised_keys=("image", "label"))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager.manual_dir / "numbers.txt")}

    def _generate_examples(self, path):
        for key, number in enumerate(path.read_text().split()):
            yield key, {"image": np.full((4, 4, 1), int(number), np.uint8), "label": key % 2}


class TinyWords(tfds.core.GeneratorBasedBuilder):
    """No images."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"text": np.str_}))

    def _split_generators(self, dl_manager):
        raise AssertionError("downloaded")

    _generate_examples = None


def run(name, tmp_path, *more):
    arguments = [name, f"--data_dir={tmp_path / 'data'}", f"--manual_dir={tmp_path / 'manual'}", *more]
    return command.run(prepare.main, arguments)


def test_any_set_is_prepared_and_left_alone(tmp_path, capsys):
    assert run("tiny_shapes", tmp_path) == 2
    error = capsys.readouterr().err
    assert "manual: holds no files; TFDS says: Write numbers into numbers.txt." in error
    (tmp_path / "manual").mkdir()
    (tmp_path / "manual" / "numbers.txt").write_text("3 x 5")
    place = tmp_path / "data" / "tiny_shapes"
    stale = [place / "incomplete.ABC_1.0.0", tmp_path / "data" / "downloads" / "tiny_shapes" / "x.tmp.1"]
    for folder in stale:
        folder.mkdir(parents=True)
    assert run("tiny_shapes", tmp_path) == 2
    output = capsys.readouterr()
    assert all(f"removing {folder}, left" in output.out for folder in stale)
    assert output.err.splitlines()[-1].startswith(f"error: {place}/1.0.0: preparing failed: invalid lit")
    assert list(place.iterdir()) == [] == list(stale[1].parent.iterdir())

    (tmp_path / "manual" / "numbers.txt").write_text("3 4 5")
    assert run("tiny_shapes", tmp_path, "--dry_run") == 0
    assert capsys.readouterr().out == f"would prepare {place}/1.0.0\n"
    assert run("tiny_shapes/1.0.0", tmp_path) == 0
    assert capsys.readouterr().out.endswith(f"{place}/1.0.0: prepared, 3 train images\n")
    shutil.rmtree(tmp_path / "manual")
    for name in ("tiny_shapes", "tiny_shapes/1.0.0"):
        assert run(name, tmp_path) == 0
        assert capsys.readouterr().out == f"{place}/1.0.0: already prepared, 3 train images\n"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("cifar01", "cifar01: no such data set; the nearest is 'cifar10'"),
        ("tiny_words", "tiny_words: needs one image and one class label"),
        ("tiny_shapes/7.0.0", "tiny_shapes/7.0.0: TFDS cannot make it: "),
    ],
)
def test_what_cannot_be_prepared_is_one_line(tmp_path, capsys, name, told):
    assert run(name, tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {told}")
    assert not (tmp_path / "data").exists()


def test_without_a_network_the_first_address_is_named_at_once(tmp_path, capsys, monkeypatch):
    def unknown(host, port):
        raise OSError("Name or service not known")

    monkeypatch.setattr(prepare.socket, "getaddrinfo", unknown)
    monkeypatch.setattr(prepare.urllib.request, "getproxies", dict)
    url = "https://images.example/a.zip"
    info = tfds.download.checksums.UrlInfo(size=1, checksum="0", filename="a.zip")
    monkeypatch.setattr(TinyShapes, "url_infos", {url: info})
    monkeypatch.setattr(TinyShapes, "MANUAL_DOWNLOAD_INSTRUCTIONS", None)
    assert run("tiny_shapes", tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    place = tmp_path / "data" / "tiny_shapes" / "1.0.0"
    assert line == (
        f"error: {url}: there is no network; where there is one, prepare the set and copy its directory "
        f"to {place}"
    )


def test_what_needs_no_preparation(tmp_path, capsys):
    assert [run(name, tmp_path) for name in ("digits", "folder:x")] == [0, 0]
    assert capsys.readouterr().out == "digits: needs no preparation\nfolder:x: needs no preparation\n"
