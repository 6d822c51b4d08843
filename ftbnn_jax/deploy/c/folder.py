"""Writes an export's folder: as a whole or not at all, and never over what is from no export."""

import fnmatch
import os
import pathlib
import tempfile
from collections.abc import Container, Iterator, Sequence

from ftbnn_jax.errors import UserError

_CMAKE_BUILD = "build"


def write(
    folder: pathlib.Path, files: dict[str, bytes], marks: Sequence[str], known: Sequence[str]
) -> None:
    """Writes a folder so that it is there as a whole or not at all; an earlier export is replaced.

    Nothing else is touched: a folder with files that neither an export wrote nor its Makefile built is
    refused.

    Args:
      folder: where.
      files: by path within the folder, "/" between its parts.
      marks: paths of files one of which an earlier export has, and nothing else.
      known: patterns of paths that exports write or that are made from their files; `*` takes no "/".

    Raises:
      UserError: it cannot be written, or something else is there.
    """
    folder = pathlib.Path(os.path.realpath(folder))
    _check_replaceable(folder, files, marks, known)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=".export-", ignore_cleanup_errors=True
        ) as scratch:
            new, old = pathlib.Path(scratch, "new"), pathlib.Path(scratch, "old")
            new.mkdir()
            for name, content in files.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_bytes(content)
            _replace(folder, new, old)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error


def _replace(folder: pathlib.Path, new: pathlib.Path, old: pathlib.Path) -> None:
    """Puts `new` in the place of `folder`, which is moved to `old`; on any failure it is moved back."""
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise


def _check_replaceable(
    folder: pathlib.Path, files: Container[str], marks: Sequence[str], known: Sequence[str]
) -> None:
    """Raises a UserError if there is anything at `folder` that is not from an export."""
    if not os.path.lexists(folder):
        return
    try:
        paths = sorted(_paths(folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot be replaced: {error.strerror}") from error
    if not any((folder / mark).is_file() for mark in marks):
        raise UserError(f"{folder}: is there already and is no earlier export; move it away")
    for path in paths:
        if path not in files and not any(_matches(path, pattern) for pattern in known):
            raise UserError(f"{folder / path}: is from no export and would be lost; move it away")


def _matches(path: str, pattern: str) -> bool:
    """Whether each part of a path matches the one of a pattern."""
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _paths(folder: pathlib.Path) -> Iterator[str]:
    """Yields everything in a folder but its directories, without what CMake builds in it."""

    def fail(error):
        raise error

    os.listdir(folder)
    is_built = (folder / _CMAKE_BUILD / "CMakeCache.txt").is_file()
    skipped = folder / _CMAKE_BUILD if is_built else None
    for directory, directories, names in os.walk(folder, onerror=fail):
        here = pathlib.Path(directory)
        directories[:] = [name for name in directories if here / name != skipped]
        links = [name for name in directories if (here / name).is_symlink()]
        for name in (*names, *links):
            yield (here / name).relative_to(folder).as_posix()
