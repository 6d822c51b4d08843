"""Prepares ImageNet with TFDS's own builder; `launch/prepare_imagenet.sh` runs it.

Everything that can be known beforehand is checked before the hours of work begin.
"""

import contextlib
import dataclasses
import difflib
import fcntl
import os
import pathlib
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

from ftbnn_jax import command
from ftbnn_jax.data.lazy import first_line, tf, tfds
from ftbnn_jax.errors import UserError, summary
from ftbnn_jax.host import paths

_NAME = "imagenet2012"
# A tar archive ends with two blocks of zeros.
_TAR_END = 2 * tarfile.BLOCKSIZE


@dataclasses.dataclass(frozen=True)
class Archive:
    """One of the official archives.

    Attributes:
      split: its TFDS split.
      file_name: its name, which TFDS looks for.
      num_bytes: its size as published.
      member: pattern of the names in it.
      members: what they are, for messages.
    """

    split: str
    file_name: str
    num_bytes: int
    member: re.Pattern
    members: str


ARCHIVES = (
    Archive(
        split="train",
        file_name="ILSVRC2012_img_train.tar",
        num_bytes=147_897_477_120,
        member=re.compile(r"n\d{8}\.tar"),
        members="one archive a class, like n01440764.tar",
    ),
    Archive(
        split="validation",
        file_name="ILSVRC2012_img_val.tar",
        num_bytes=6_744_924_160,
        member=re.compile(r"ILSVRC2012_val_\d{8}\.JPEG"),
        members="images like ILSVRC2012_val_00000001.JPEG",
    ),
)


def check_archive(archive: Archive, directory: pathlib.Path) -> int:
    """Returns the size in bytes of an archive that is complete and holds what it should.

    Reads the headers only. An archive smaller than the official one is taken.

    Raises:
      UserError: it is missing, not readable, no tar archive, cut off, or holds something else.
    """
    path = directory / archive.file_name
    if not path.is_file():
        names = [p.name for p in directory.iterdir()] if directory.is_dir() else []
        others = [n for n in names if n not in [a.file_name for a in ARCHIVES]]
        near = difflib.get_close_matches(archive.file_name, others, n=1)
        there = f"; {near[0]!r} is there: is it the archive?" if near else ""
        raise UserError(f"{path}: not found{there}; image-net.org gives it to registered users")
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            names = []
            for member in tar:
                names.append(member.name)
                # Kept by tarfile otherwise, all of them.
                tar.members = []
            end = tar.offset
        with open(path, "rb") as file:
            file.seek(end)
            whole = file.read(_TAR_END) == bytes(_TAR_END)
    except tarfile.ReadError as error:
        what = "cut off" if "unexpected end" in str(error) else "no tar archive"
        raise UserError(f"{path}: {what}, {_size(archive, size)}; copy it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not whole:
        raise UserError(f"{path}: cut off, {_size(archive, size)}; copy it again")
    wrong = next((n for n in names if not archive.member.fullmatch(n)), None)
    if wrong or not names:
        raise UserError(f"{path}: holds {wrong or 'nothing'}, and should hold {archive.members}")
    if archive.split == "validation":
        # TFDS gives the first label of its list to the first name in the archive, and so on.
        expected = (f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, len(names) + 1))
        missing = next((e for e, n in zip(expected, sorted(names), strict=True) if e != n), None)
        if missing:
            raise UserError(
                f"{path}: lacks {missing}, so that TFDS would mistake the labels of the later images; "
                f"a part of the archive must be its first images"
            )
    return size


def _size(archive: Archive, size: int) -> str:
    return f"{size:,} bytes instead of {archive.num_bytes:,}"


def check_space(data_dir: pathlib.Path, needed: int) -> None:
    """Raises UserError unless the disk of `data_dir` has `needed` bytes free."""
    there = next(p for p in [data_dir, *data_dir.parents] if p.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"--data_dir={data_dir}: {free:,} bytes free, needs {needed:,}, the size of the archives"
        )


def prepared_images(builder: Any) -> dict[str, int] | None:
    """Returns the number of images of each split, or None if nothing is prepared.

    Raises:
      UserError: what is there is incomplete.
    """
    if not builder.data_path.exists():
        return None
    files = [f for split in builder.info.splits.values() for f in split.filepaths]
    missing = next((f for f in files if not f.exists()), None)
    if missing or not files:
        raise UserError(
            f"{builder.data_path}: {f'lacks {missing.name}' if missing else 'holds no data set'}; "
            "remove the directory and prepare again"
        )
    return {name: split.num_examples for name, split in builder.info.splits.items()}


@contextlib.contextmanager
def _only_one(directory: pathlib.Path) -> Iterator[None]:
    """Keeps other preparations out of a directory; the lock goes with the process, however it ends."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UserError(f"{directory}: being prepared by another process") from error
    finally:
        os.close(descriptor)


def prepare(manual_dir: pathlib.Path, data_dir: pathlib.Path, *, dry_run: bool = False) -> None:
    """Checks, then prepares `data_dir`/imagenet2012 unless that was done before.

    Args:
      manual_dir: directory of the archives.
      data_dir: TFDS's directory of data sets.
      dry_run: end after the checks.

    Raises:
      UserError: an archive or the disk is not fit, or what is prepared is incomplete.
    """
    # A first preparation's mistakes are told without waiting for TensorFlow.
    checked = not (data_dir / _NAME).exists()
    if checked:
        _check(manual_dir, data_dir)
    try:
        builder = tfds.builder(_NAME, data_dir=data_dir)
    # TFDS hands on whatever its reader of a damaged dataset_info.json raises.
    except Exception as error:
        raise UserError(
            f"{data_dir / _NAME}: cannot be opened: {first_line(error)}; remove the "
            "directory and prepare again"
        ) from error
    counts = prepared_images(builder)
    if counts is not None:
        print(f"{builder.data_path}: already prepared, {_count(counts)}")
        return
    if not checked:
        _check(manual_dir, data_dir)
    if dry_run:
        print(f"would prepare {builder.data_path}")
        return
    parent = builder.data_path.parent
    try:
        with _only_one(parent):
            for stale in parent.glob(f"{tfds.core.constants.INCOMPLETE_PREFIX}*"):
                print(f"removing {stale}, left by a preparation that was interrupted")
                shutil.rmtree(stale)
            config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
            builder.download_and_prepare(download_config=config)
    except (OSError, RuntimeError, tarfile.TarError, tf.errors.OpError) as error:
        # TFDS has removed what it had written. It wraps what it meets, as a full disk, in RuntimeError.
        raise UserError(f"{builder.data_path}: preparing failed: {summary(error)}") from error
    print(f"{builder.data_path}: prepared, {_count(prepared_images(builder))}")


def _check(manual_dir: pathlib.Path, data_dir: pathlib.Path) -> None:
    """Checks archives and space, and says what the archives are."""
    needed = 0
    for archive in ARCHIVES:
        size = check_archive(archive, manual_dir)
        kind = "whole" if size == archive.num_bytes else f"a part of ImageNet: {_size(archive, size)}"
        print(f"{manual_dir / archive.file_name}: {kind}")
        needed += size
    check_space(data_dir, needed)


def _count(images: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {split} images" for split, number in images.items())


def main(arguments: Sequence[str]) -> int:
    """Does what the command line says; returns the exit status."""
    parser = command.ArgumentParser(
        prog="python -m ftbnn_jax.data.prepare_imagenet", description=__doc__.partition(";")[0]
    )
    parser.add_argument("manual_dir", type=paths.local_argument, help="directory of the two archives")
    parser.add_argument("data_dir", type=paths.local_argument, help="TFDS's directory of data sets")
    parser.add_argument("--dry_run", action="store_true", help="end after the checks")
    options = parser.parse_args(arguments)
    manual_dir, data_dir = (pathlib.Path(d).absolute() for d in (options.manual_dir, options.data_dir))
    prepare(manual_dir, data_dir, dry_run=options.dry_run)
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main))
