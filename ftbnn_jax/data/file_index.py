"""Where the images of a folder are: found by looking through it once, and kept for the next start.

A kept index is used if no folder in it has changed since: a file that comes, goes or is renamed changes
the times of its folder. What a file holds is not part of the index.
"""

import collections
import dataclasses
import hashlib
import io
import json
import os
import time
import zipfile

import numpy as np
from etils import epath

from ftbnn_jax.errors import UserError
from ftbnn_jax.host import paths
from ftbnn_jax.ops import decoding

# Kept indices of another version are not used.
_VERSION = 1
# The times of some file systems are so coarse: of a folder that changed so shortly before it was looked
# at, a later change might not show.
_COARSE_NS = 2 * 10**9
# Folders whose index this process has at hand: training and evaluation may share one.
_RECENT: dict[str, "FileIndex"] = {}
_MOST_RECENT = 2


@dataclasses.dataclass(frozen=True)
class FileIndex:
    """The image files in the folders within a folder.

    Attributes:
      directory: the folder, absolute.
      folders: those within, at any depth, relative to it.
      stamps: int64 `[1 + len(folders), 4]`, device, inode, and times of change (of the content and of
        anything, in ns) of the folder and of those within.
      folder_of: int32 `[N]`, index into `folders` of each file.
      names: uint8 `[...]`, the names of the files in the system's encoding, one behind the other.
      ends: int64 `[N]`, where each name ends.
      places: uint64 `[N]`, a function of the path of each file within `directory`, spread evenly.
      passed_over: for each reason why files are none of the images, their number and the first.
      looked_at: when, in ns since 1970.
    """

    directory: str
    folders: tuple[str, ...]
    stamps: np.ndarray
    folder_of: np.ndarray
    names: np.ndarray
    ends: np.ndarray
    places: np.ndarray
    passed_over: dict[str, tuple[int, str]]
    looked_at: int

    @property
    def num_files(self) -> int:
        return len(self.ends)

    def path(self, row: int) -> str:
        """Returns the path of a file."""
        start = int(self.ends[row - 1]) if row else 0
        name = os.fsdecode(self.names[start : int(self.ends[row])].tobytes())
        return os.path.join(self.directory, self.folders[self.folder_of[row]], name)

    def is_within(self, share: float) -> np.ndarray:
        """Whether each file, bool `[N]`, is in a share of all, which its path decides and no other."""
        return self.places < np.uint64(share * 2**64)

    def is_current(self) -> bool:
        """Whether every folder is as it was."""
        if self.stamps[:, 2:].max() > self.looked_at - _COARSE_NS:
            return False
        try:
            now = [_stamp(os.path.join(self.directory, f)) for f in ("", *self.folders)]
        except OSError:
            return False
        return np.array_equal(self.stamps, np.array(now, np.int64))

    def save(self, workdir: str) -> None:
        """Keeps the index in a work directory.

        Raises:
          OSError: it cannot be written.
        """
        facts = {k: getattr(self, k) for k in ("directory", "passed_over", "looked_at")}
        arrays = {k: getattr(self, k) for k in _ARRAYS}
        head = json.dumps({"version": _VERSION, **facts, "folders": self.folders})
        content = io.BytesIO()
        np.savez(content, head=np.frombuffer(head.encode(), np.uint8), **arrays)
        paths.write_whole(_file(self.directory, workdir), content.getvalue())


_ARRAYS = ("stamps", "folder_of", "names", "ends", "places")


def open_index(directory: str, workdir: str = "") -> FileIndex:
    """Returns the index of a folder: a kept one if it is current, or else a new one.

    Args:
      directory: the folder.
      workdir: where an index may be kept; "" for nowhere.

    Raises:
      UserError: a folder cannot be read.
    """
    directory = os.path.abspath(directory)
    index = _RECENT.pop(directory, None) or (_load(directory, workdir) if workdir else None)
    if index is None or not index.is_current():
        index = _look_through(directory)
    _RECENT[directory] = index
    while len(_RECENT) > _MOST_RECENT:
        _RECENT.pop(next(iter(_RECENT)))
    return index


def _file(directory: str, workdir: str) -> epath.Path:
    name = hashlib.blake2b(os.fsencode(directory), digest_size=4).hexdigest()
    return paths.absolute(workdir) / f"images-{name}.npz"


def _load(directory: str, workdir: str) -> FileIndex | None:
    """Returns the index that is kept; None where there is none of this folder, or a damaged one."""
    try:
        with np.load(io.BytesIO(_file(directory, workdir).read_bytes())) as content:
            head = json.loads(content["head"].tobytes())
            if (head.pop("version"), head["directory"]) != (_VERSION, directory):
                return None
            arrays = {name: content[name] for name in _ARRAYS}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    head["folders"] = tuple(head["folders"])
    head["passed_over"] = {reason: tuple(found) for reason, found in head["passed_over"].items()}
    return FileIndex(**head, **arrays)


def _stamp(path: str) -> tuple[int, int, int, int]:
    stat = os.stat(path)
    # Inodes and devices of some file systems have all 64 bits.
    device, inode = (number & 2**63 - 1 for number in (stat.st_dev, stat.st_ino))
    return device, inode, stat.st_mtime_ns, stat.st_ctime_ns


def _look_through(directory: str) -> FileIndex:
    """Finds all files below the folders of `directory`, in the order of their paths' parts."""
    looked_at = time.time_ns()
    folders, stamps, counts = [], [], []
    names: list[bytes] = []
    places: list[int] = []
    passed_over: dict[str, list[str]] = collections.defaultdict(list)
    todo: list[tuple[str, frozenset]] = [("", frozenset())]
    while todo:
        folder, above = todo.pop()
        path = os.path.join(directory, folder) if folder else directory
        try:
            stamp = _stamp(path)
            if stamp[:2] in above:
                passed_over["a link to a folder that it is in"].append(path)
                continue
            inner, files = _entries(path, passed_over)
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}", path) from error
        todo += [(os.path.join(folder, name), above | {stamp[:2]}) for name in reversed(inner)]
        stamps.append(stamp)
        if not folder:
            passed_over["in the folder of no class"] += [os.path.join(path, name) for name in files]
            continue
        folders.append(folder)
        counts.append(len(files))
        encoded = [os.fsencode(name) for name in files]
        begin = hashlib.blake2b(os.fsencode(folder) + b"/", digest_size=8)
        for name in encoded:
            whole = begin.copy()
            whole.update(name)
            places.append(int.from_bytes(whole.digest()))
        names += encoded
    return FileIndex(
        directory=directory,
        folders=tuple(folders),
        stamps=np.array(stamps, np.int64),
        folder_of=np.repeat(np.arange(len(folders), dtype=np.int32), counts),
        names=np.frombuffer(b"".join(names), np.uint8),
        ends=np.cumsum([len(name) for name in names], dtype=np.int64),
        places=np.array(places, np.uint64),
        passed_over={reason: (len(p), p[0]) for reason, p in passed_over.items() if p},
        looked_at=looked_at,
    )


def _entries(path: str, passed_over: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """Returns the names of folders and of images in a folder, sorted; hidden ones are left out."""
    folders, files = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if name.lower().endswith(decoding.SUFFIXES) and entry.is_file():
                files.append(name)
            elif entry.is_dir():
                folders.append(name)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                passed_over["a link to nowhere"].append(entry.path)
            else:
                passed_over[f"none of {' '.join(decoding.SUFFIXES)}"].append(entry.path)
    return sorted(folders), sorted(files)
