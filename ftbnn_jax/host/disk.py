"""Errors of the disk that a work directory is on, told in one line."""

import atexit
import contextlib
import errno
import os
import sys
from collections.abc import Iterator

from ftbnn_jax import extras
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import paths

with extras.named():
    from etils import epath


def make_directory(directory: epath.Path, workdir: str) -> None:
    """Makes a directory, if need be, that files can be written into.

    Args:
      directory: in or above a run's files.
      workdir: as the user gave it.

    Raises:
      UserError: that cannot be done.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # Other processes try as well.
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def errors_are_told(workdir: str) -> Iterator[None]:
    """Turns an OSError of a full disk, or of a file in `workdir`, into a UserError that says so."""
    try:
        yield
    except OSError as error:
        file = os.path.abspath(os.fsdecode(error.filename2 or error.filename or ""))
        if is_full(error):
            raise UserError(
                f"--workdir={workdir}: no space left; the checkpoints are intact, the same command goes "
                "on when there is room"
            ) from error
        if not file.startswith(os.path.join(str(paths.absolute(workdir)), "")):
            raise
        raise UserError(
            f"{file}: cannot be used ({error.strerror}); the checkpoints are intact, the same command "
            "goes on when that is mended"
        ) from error


def is_full(error: BaseException) -> bool:
    """Whether a full disk, or a full quota, is behind an error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "RESOURCE_EXHAUSTED" in str(error):  # TensorStore's.
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and is_full(cause)


def hide_orphaned_writes() -> None:
    """Keeps the process from printing a traceback for every write that outlives a failed save.

    Orbax closes its event loop under them; what made the save fail is raised and told once.
    """
    raised, ignored = sys.excepthook, sys.unraisablehook

    def is_orphaned(kind, value):
        return kind is RuntimeError and str(value) == "Event loop is closed"

    def excepthook(kind, value, trace):
        if not is_orphaned(kind, value):
            raised(kind, value, trace)

    def unraisablehook(unraisable):
        if not is_orphaned(unraisable.exc_type, unraisable.exc_value):
            ignored(unraisable)

    # By which of the two a write ends depends on the thread that it is in.
    sys.excepthook, sys.unraisablehook = excepthook, unraisablehook
    # While the interpreter ends there is no hook any more, and everything has been told.
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))
