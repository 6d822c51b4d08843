"""Paths on this machine or in a bucket (gs://...), which cannot append to a file or replace one."""

import os

from etils import epath


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return "://" in os.fspath(path)


def absolute(path: str) -> epath.Path:
    """Returns the path, absolute unless it is in a bucket."""
    return epath.Path(path if is_remote(path) else os.path.abspath(path))


def write_whole(path: epath.Path, text: str) -> None:
    """Writes a file so that it holds either what it held or all of `text`, whatever happens."""
    if is_remote(path):
        # An object appears when it has been written.
        path.write_text(text)
        return
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
