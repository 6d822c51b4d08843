"""Examples in TFRecord files, on disk or in a bucket: found once, then read at any index and checked."""

import contextlib
import dataclasses
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from google.protobuf import message as protobuf_message

from ftbnn_jax.data.encoded import EncodedSplit, readers
from ftbnn_jax.data.framing import FOOTER_BYTES, HEADER_BYTES, checksum
from ftbnn_jax.data.lazy import first_line, tf
from ftbnn_jax.errors import CorruptRecordError, UserError
from ftbnn_jax.host import paths


@dataclasses.dataclass(frozen=True)
class RecordFile:
    """The part of a record file that belongs to a split.

    Attributes:
      path: of the file; with a scheme ("gs://...") it is read through `tf.io.gfile`.
      skip: records to leave out at its start.
      take: records to use after those.
      holds: records in the whole file, where that is known.
    """

    path: str
    skip: int
    take: int
    holds: int | None = None


@dataclasses.dataclass(frozen=True)
class RecordSplit(EncodedSplit):
    """Encoded examples in TFRecord files, readable at any index without reading those before it.

    Attributes:
      files: the record files.
      file_of: int32 `[N]`, index into `files` of each example.
      offset_of: int64 `[N]`, where its payload starts, in bytes.
      length_of: int64 `[N]`, length of its payload in bytes.
      image_key: name of the image among the features of a payload, a `tf.train.Example`.
      label_key: name of the label.
      class_names: one name a class, in the order of the labels.
      channels: colour channels of a decoded image.
    """

    files: tuple[RecordFile, ...]
    file_of: np.ndarray
    offset_of: np.ndarray
    length_of: np.ndarray
    image_key: str
    label_key: str
    class_names: tuple[str, ...]
    channels: int

    @property
    def num_examples(self) -> int:
        return len(self.offset_of)

    def head(self, count: int) -> "RecordSplit":
        """Returns the split of the first `count` examples."""
        first = {k: getattr(self, k)[:count] for k in ("file_of", "offset_of", "length_of")}
        return dataclasses.replace(self, **first, corrupt=set())

    def name(self, index: int) -> str:
        """Returns the file of an example, and its number there, for a message."""
        number = int(self.file_of[index])
        first = int(np.searchsorted(self.file_of, number))
        file = self.files[number]
        return f"{file.path}, record {file.skip + index - first}"

    def read(self, index: int) -> bytes:
        """Returns the serialised example at `index`.

        Raises:
          CorruptRecordError: its checksum does not fit, or the file has become shorter.
          UserError: the file cannot be read.
        """
        length = int(self.length_of[index])
        path = self.files[self.file_of[index]].path
        with _open(path) as read:
            data = read(int(self.offset_of[index]), length + FOOTER_BYTES)
        if len(data) < length + FOOTER_BYTES:
            raise CorruptRecordError("the file ends within it")
        payload, footer = data[:length], data[length:]
        if checksum(payload) != footer:
            raise CorruptRecordError("its checksum does not fit")
        return payload

    def example(self, index: int) -> tuple[bytes, int]:
        try:
            features = tf.train.Example.FromString(self.read(index)).features.feature
        except protobuf_message.DecodeError as error:
            raise CorruptRecordError("no tf.train.Example") from error
        images = features[self.image_key].bytes_list.value
        labels = features[self.label_key].int64_list.value
        for key, values in ((self.image_key, images), (self.label_key, labels)):
            if len(values) != 1:
                raise CorruptRecordError(f"{len(values)} values of the feature {key!r} instead of one")
        return images[0], labels[0]

    def fetch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if paths.is_remote(self.files[0].path):
            examples = list(readers().map(self.example, indices.tolist()))
        else:
            self._prefetch(indices)
            examples = [self.example(index) for index in indices.tolist()]
        images, labels = zip(*examples, strict=True)
        labels = np.array(labels, np.int64)
        if len(wrong := wrong_labels(labels, self.class_names)):
            raise UserError(
                f"{self.name(int(indices[wrong[0]]))}: label {labels[wrong[0]]} is outside 0 to "
                f"{len(self.class_names) - 1}; use a split whose images all have labels"
            )
        return np.array(images, object), labels.astype(np.int32)

    def first(self, count: int) -> list[tuple[bytes, int] | CorruptRecordError]:
        """Returns the first examples as `example` does, or what is wrong with them."""

        def look(index):
            try:
                return self.example(index)
            except CorruptRecordError as error:
                return error

        return list(readers().map(look, range(min(count, self.num_examples))))

    def _prefetch(self, indices: np.ndarray) -> None:
        """Has the system fetch records at once; threads would, too, but stand in the decoder's way."""
        if hasattr(os, "posix_fadvise"):
            for index in indices:
                with _open_local(self.files[self.file_of[index]].path) as file:
                    size = int(self.length_of[index]) + FOOTER_BYTES
                    os.posix_fadvise(file, int(self.offset_of[index]), size, os.POSIX_FADV_WILLNEED)


def index_files(
    files: Sequence[RecordFile],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds where each record lies, from the lengths in the records' headers alone.

    Returns:
      `file_of`, `offset_of` and `length_of` of a `RecordSplit`.

    Raises:
      UserError: a file cannot be read, ends within a record, or holds more of them than it should.
    """
    found = list(readers().map(_index_file, files))
    counts = [len(offsets) for offsets, _ in found]
    return (
        np.repeat(np.arange(len(files), dtype=np.int32), counts),
        np.concatenate([offsets for offsets, _ in found]),
        np.concatenate([lengths for _, lengths in found]),
    )


def wrong_labels(labels: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Returns the places, int64, of labels that are none of the classes: TFDS writes -1 for 'none'."""
    return np.flatnonzero((labels < 0) | (labels >= len(class_names)))


@contextlib.contextmanager
def _open(path: str) -> Iterator[Callable[[int, int], bytes]]:
    """Yields a function that reads from an offset a number of bytes, or as many as there are."""
    try:
        if paths.is_remote(path):
            with tf.io.gfile.GFile(path, "rb") as file:

                def read(offset: int, size: int) -> bytes:
                    file.seek(offset)
                    return file.read(size)

                yield read
        else:
            with _open_local(path) as file:
                yield lambda offset, size: os.pread(file, size, offset)
    except Exception as error:
        if not paths.is_remote(path) or not isinstance(error, tf.errors.OpError):
            raise
        raise UserError(f"{path}: {first_line(error)}") from error


@contextlib.contextmanager
def _open_local(path: str) -> Iterator[int]:
    """Yields a file's descriptor; Python's file object takes as long to make as a record to read."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _index_file(file: RecordFile) -> tuple[np.ndarray, np.ndarray]:
    """Returns offset and length of the payloads of one file's records, int64 each."""
    offsets, lengths, position = [], [], 0
    unpack = struct.Struct("<Q").unpack
    with _open(file.path) as read:
        if paths.is_remote(file.path):
            end = tf.io.gfile.stat(file.path).length
        else:
            end = os.path.getsize(file.path)
        for record in range(file.skip + file.take):
            length = unpack(read(position, 8))[0] if position + 8 <= end else end
            following = position + HEADER_BYTES + length + FOOTER_BYTES
            if following > end:
                raise UserError(f"{file.path}: truncated at record {record}; prepare the set again")
            offsets.append(position + HEADER_BYTES)
            lengths.append(length)
            position = following
        if file.skip + file.take == file.holds and position < end:
            raise UserError(
                f"{file.path}: goes on after the {file.holds} records that dataset_info.json tells of; "
                "prepare the set again"
            )
    return np.asarray(offsets[file.skip :], np.int64), np.asarray(lengths[file.skip :], np.int64)


def split_files(file_instructions: Iterable[Any]) -> tuple[RecordFile, ...]:
    """Translates TFDS's file instructions of a split, of which `take` may be -1 for all."""
    files = []
    for instruction in file_instructions:
        rest = instruction.examples_in_shard - instruction.skip
        take = rest if instruction.take == -1 else instruction.take
        path, holds = str(instruction.filename), instruction.examples_in_shard
        files.append(RecordFile(path, instruction.skip, take, holds))
    return tuple(files)
