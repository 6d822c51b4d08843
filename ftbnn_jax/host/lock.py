"""One training at a time in a work directory: a lock on a file, or a lease on an object in a bucket.

The operating system drops a file's lock when its process ends, however it does. An object knows nothing
of processes: whoever holds it says again and again until when, and is gone when that has passed.
"""

import contextlib
import datetime
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import filelock

from ftbnn_jax import extras
from ftbnn_jax.errors import UserError
from ftbnn_jax.host import disk, paths

with extras.named():
    from etils import epath

# Length of a lease. A holder that could not renew for so long is taken for dead.
_LEASE_S = 60.0
_RENEWED_EVERY_S = 15.0
# Two may find an object free at the same time: the one whose name is there after this has it.
_SETTLED_AFTER_S = 1.0


def _machine() -> str:
    """Where numbers of processes mean the same: one start of one kernel, one space of them; or ""."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


class Held:
    """A work directory that is this process's own, as long as `check` does not say otherwise."""

    def __init__(self, workdir: str, work: str):
        self.workdir = workdir
        # Says who is at work: beside the lock, or as the lease.
        self.path = paths.absolute(workdir) / f"{work}.json"
        now = datetime.datetime.now().astimezone()
        self._owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "since": now.isoformat(sep=" ", timespec="seconds"),
            "id": uuid.uuid4().hex,
        }
        self._taken_by: dict[str, Any] = {}

    def check(self) -> None:
        """Raises a UserError where another process has taken the directory over."""
        if self._taken_by:
            raise UserError(
                f"--workdir={self.workdir}: was taken over by {_named(self._taken_by)}, since its lease "
                f"could not be renewed for {_LEASE_S:.0f} s"
            )

    def write(self) -> None:
        """Says that this process is at work, for a lease's time from now on."""
        owner = {**self._owner, "until": time.time() + _LEASE_S}
        paths.write_whole(self.path, json.dumps(owner) + "\n")

    def other(self) -> dict[str, Any]:
        """Returns the process, if another one, that the directory names; {} where it names none."""
        owner = _read(self.path)
        return {} if owner.get("id") == self._owner["id"] else owner

    def renew_until(self, ended: threading.Event) -> None:
        """Renews the lease, unless another process has it, until it is not needed any more."""
        while not ended.wait(_RENEWED_EVERY_S):
            # A bucket that cannot be reached now may be the next time.
            with contextlib.suppress(OSError):
                self._taken_by = self.other()
                if self._taken_by:
                    return
                self.write()


@contextlib.contextmanager
def held(workdir: str, work: str = "running") -> Iterator[Held]:
    """Holds a work directory for this process.

    Args:
      workdir: made if need be.
      work: what for; processes of different works do not exclude each other.

    Raises:
      UserError: it cannot be written, or another process holds it.
    """
    directory = paths.absolute(workdir)
    disk.make_directory(directory, workdir)
    mine = Held(workdir, work)
    with (_leased if paths.is_remote(directory) else _locked)(mine):
        yield mine


@contextlib.contextmanager
def _locked(mine: Held) -> Iterator[None]:
    lock = filelock.FileLock(str(mine.path.with_name(f".{mine.path.stem}.lock")))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise _refusal(mine, mine.other()) from None
    except OSError as error:
        raise UserError(f"{lock.lock_file}: cannot be locked: {error.strerror}") from error
    try:
        mine.write()
        yield
    finally:
        # The lock's file stays: a process that has it open would lock one that is gone.
        mine.path.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def _leased(mine: Held) -> Iterator[None]:
    for wait in (_SETTLED_AFTER_S, 0.0):
        other = mine.other()
        if other.get("until", 0.0) > time.time() and not _has_ended(other):
            left = other["until"] - time.time()
            raise _refusal(mine, other, f" (if it is gone, its lease ends in {left:.0f} s)")
        if wait:
            mine.write()
            time.sleep(wait)
    ended = threading.Event()
    thread = threading.Thread(target=mine.renew_until, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if not mine.other():
            mine.path.unlink(missing_ok=True)


def _read(path: epath.Path) -> dict[str, Any]:
    try:
        owner = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    # What something else has left there is no owner.
    return owner if isinstance(owner, dict) and isinstance(owner.get("until"), float) else {}


def _has_ended(owner: dict[str, Any]) -> bool:
    """Whether the process is known to be gone, so that its lease need not be waited for."""
    if not owner.get("machine") or owner["machine"] != _machine():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _named(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('since')}"


def _refusal(mine: Held, other: dict[str, Any], rest: str = "") -> UserError:
    return UserError(
        f"--workdir={mine.workdir}: is in use by {_named(other)}; wait for it, or take another "
        f"--workdir{rest}"
    )
