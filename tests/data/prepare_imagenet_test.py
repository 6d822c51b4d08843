"""Preparing ImageNet: what is refused before the work, and that nothing half done is taken for whole."""

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

import pytest

from ftbnn_jax import command, errors
from ftbnn_jax.data import prepare_imagenet

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
        prepare_imagenet.prepare(manual_dir, tmp_path / "data")
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
        prepare_imagenet.prepare(manual_dir, tmp_path / "data")


def test_official_archives_are_called_whole_and_others_a_part(manual_dir, tmp_path, monkeypatch, capsys):
    train, validation = prepare_imagenet.ARCHIVES
    size = (manual_dir / TRAIN).stat().st_size
    official = dataclasses.replace(train, num_bytes=size)
    monkeypatch.setattr(prepare_imagenet, "ARCHIVES", (official, validation))
    prepare_imagenet.prepare(manual_dir, tmp_path / "data", dry_run=True)
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
    module = [sys.executable, "-m", "ftbnn_jax.data.prepare_imagenet"]
    process = subprocess.Popen(
        [*module, imagenet_manual_dir, tmp_path],
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

    prepare_imagenet.prepare(imagenet_manual_dir, tmp_path)
    output = capsys.readouterr().out
    assert f"removing {stale}" in output
    assert "a part of ImageNet: 3,388,416 bytes instead of 147,897,477,120" in output
    assert "prepared, 80 train images, 20 validation images" in output
    (prepared,) = parent.iterdir()
    times = {path: path.stat().st_mtime_ns for path in prepared.iterdir()}

    # The archives are not needed any more.
    prepare_imagenet.prepare(tmp_path / "nowhere", tmp_path)
    output = capsys.readouterr().out
    assert output == f"{prepared}: already prepared, 80 train images, 20 validation images\n"
    assert times == {path: path.stat().st_mtime_ns for path in prepared.iterdir()}

    (records,) = prepared.glob("*-validation.tfrecord*")
    records.unlink()
    with pytest.raises(errors.UserError, match=f"{prepared}: lacks {records.name}; remove"):
        prepare_imagenet.prepare(imagenet_manual_dir, tmp_path)


@pytest.mark.parametrize("info", ["{", "", '{"name": 3}', "{}"])
def test_damaged_metadata_is_one_line(tmp_path, info):
    place = tmp_path / "imagenet2012" / "5.1.0"
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text(info)
    with pytest.raises(
        errors.UserError, match=f"{place.parent}: cannot be opened: .*; remove"
    ) as caught:
        prepare_imagenet.prepare(tmp_path / "manual", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_directory_that_must_not_be_read_is_named(tmp_path, monkeypatch, capsys):
    """The system's refusal is imitated: a test that runs as root may read everything."""

    def denied(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "is_file", denied)
    arguments = [str(tmp_path / "manual"), str(tmp_path / "data")]
    assert command.run(prepare_imagenet.main, arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "Permission denied" in line and TRAIN in line


def test_failure_half_way_is_one_line_and_leaves_nothing(manual_dir, tmp_path):
    """Archives whose members only look like archives from outside."""
    with pytest.raises(errors.UserError, match="preparing failed: invalid header") as caught:
        prepare_imagenet.prepare(manual_dir, tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "data" / "imagenet2012").iterdir()) == []


def test_two_at_a_time_are_refused(manual_dir, tmp_path):
    (tmp_path / "data" / "imagenet2012").mkdir(parents=True)
    descriptor = os.open(tmp_path / "data" / "imagenet2012", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(errors.UserError, match="imagenet2012: being prepared by another process"):
            prepare_imagenet.prepare(manual_dir, tmp_path / "data")
    finally:
        os.close(descriptor)
