"""ImageNet's two archives: whether they are whole, before hours are spent on them."""

import dataclasses
import difflib
import pathlib
import re
import tarfile

from ftbnn_jax.errors import UserError

NAME = "imagenet2012"
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


def check_archives(directory: pathlib.Path) -> int:
    """Checks the archives in a directory, says what they are, and returns their size in bytes.

    Raises:
      UserError: as `check_archive`.
    """
    sizes = []
    for archive in ARCHIVES:
        size = check_archive(archive, directory)
        kind = "whole" if size == archive.num_bytes else f"a part of ImageNet: {_size(archive, size)}"
        print(f"{directory / archive.file_name}: {kind}")
        sizes.append(size)
    return sum(sizes)
