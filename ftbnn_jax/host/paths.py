"""Paths on this machine or in a bucket (gs://...), which cannot append to a file or replace one."""

import argparse
import contextlib
import os
import re
import urllib.parse
import uuid
from types import ModuleType
from typing import TYPE_CHECKING

from ftbnn_jax import extras
from ftbnn_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath

# Where an object store is; TensorFlow, Orbax and TensorBoard know it by this name.
_BUCKET = "gs"


def expand(path: str) -> str:
    """Returns a path as the file system takes it: `~` and `~user` replaced, `file://` taken away.

    Args:
      path: on this machine, or in a bucket.

    Raises:
      UserError: there is no such home, or the scheme is not known.
    """
    if "\0" in path:
        raise UserError("a path cannot hold the character 0", repr(path))
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", path):
        return _of_url(path, scheme[1].lower())
    if not path.startswith("~"):
        return path
    home = os.path.expanduser(path)
    if home.startswith("~"):
        # "./~run" is a name that begins so.
        raise UserError(f"there is no home directory {path.partition('/')[0]}; give a whole path", path)
    return home


def _of_url(path: str, scheme: str) -> str:
    if re.match(rf"{_BUCKET}://[^/]", path):
        return path
    if scheme == "file" and path[len(scheme) :].startswith(":///"):
        return urllib.parse.unquote(path[len("file://") :])
    raise UserError(
        f"must be file:///PATH, {_BUCKET}://BUCKET/PATH, or a path that does not begin with {scheme}:",
        path,
    )


def argument(text: str) -> str:
    """Returns the path in an argument, a `type` for argparse."""
    try:
        if text:
            return expand(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    raise argparse.ArgumentTypeError("must not be empty")


def local_argument(text: str) -> str:
    """Returns the path in an argument that must be on this machine, a `type` for argparse."""
    path = argument(text)
    if is_remote(path):
        raise argparse.ArgumentTypeError(f"{path}: must be on this machine")
    return path


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return "://" in os.fspath(path)


def absolute(path: str) -> "epath.Path":
    """Returns the path, expanded, and absolute unless it is in a bucket.

    Raises:
      UserError: as `expand`.
    """
    path = expand(path)
    return _epath().Path(path if is_remote(path) else os.path.abspath(path))


def _epath() -> ModuleType:
    # Imported late: what loads an artifact needs no more than `expand`.
    with extras.named():
        from etils import epath
    return epath


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a file so that it holds either what it held or all of `content`, whatever happens."""
    content = content.encode() if isinstance(content, str) else content
    path = os.fspath(path)
    if is_remote(path):
        # An object appears when it has been written.
        _epath().Path(path).write_bytes(content)
        return
    # A name that nobody else has: neither a user's file nor what another process is writing.
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as stream:
            stream.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
