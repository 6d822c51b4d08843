"""A folder of image files as a data set: `--config.dataset=folder:PATH`.

A folder of a split holds one folder a class, and that the class's images, in folders of any depth:

    PATH/train/cat/1.png            PATH/cat/1.png
    PATH/train/dog/a/2.jpg    or    PATH/dog/a/2.jpg
    PATH/test/cat/3.webp

`train` (or `training`) and `validation`, `val`, `valid`, `test` or `testing` are found whatever their
case. Without one of the latter, `config.eval_share` of the images are for evaluation: which ones, their
names say, so that no image moves when others come. Classes are the names of the folders, sorted by code
points, as torchvision's `ImageFolder` has them; links are followed, hidden files and folders are not
looked at.
"""

import dataclasses
import os
import re

import numpy as np
from PIL import Image

from ftbnn_jax import report
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import encoded, file_index
from ftbnn_jax.data.file_index import FileIndex
from ftbnn_jax.data.split import ArraySplit, spread
from ftbnn_jax.errors import CorruptRecordError, UserError, summary
from ftbnn_jax.host import paths
from ftbnn_jax.ops import decoding

PREFIX = "folder:"
_TRAIN = ("train", "training")
# In the order in which they are taken, as `validation` comes before `test` in TFDS's sets.
_EVAL = ("validation", "val", "valid", "test", "testing")
# Training images whose channels are looked at.
_LOOK = 200
# Modes of Pillow without colours.
_GRAY = re.compile(r"1|LA?|I(;16\w*)?")


@dataclasses.dataclass(frozen=True)
class FolderSplit(encoded.EncodedSplit):
    """Image files of a folder.

    Attributes:
      index: of all files of the folder.
      rows: int64 `[N]`, where in the index each image is.
      labels: int32 `[N]`.
      class_names: one name a class, in the order of the labels.
      channels: colour channels of a decoded image.
    """

    remedy = "mend or remove these files, or raise the limit"

    index: FileIndex
    rows: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    channels: int

    @property
    def num_examples(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return self.index.path(int(self.rows[index]))

    def example(self, index: int) -> tuple[bytes, int]:
        try:
            with open(self.name(index), "rb") as file:
                return file.read(), int(self.labels[index])
        except OSError as error:
            raise CorruptRecordError(error.strerror or "cannot be read") from error

    def fetch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = [image for image, _ in encoded.readers().map(self.example, indices.tolist())]
        return np.array(images, object), self.labels[indices]

    def save_index(self, workdir: str) -> None:
        self.index.save(workdir)


@dataclasses.dataclass(frozen=True)
class DecodedFolderSplit(ArraySplit):
    """Image files of a folder, decoded, brought to one size and kept in memory.

    Attributes:
      files: the files.
      kept: int64 `[N]`, number of each image among the files.
    """

    files: FolderSplit
    kept: np.ndarray

    def whole(self, index: int) -> np.ndarray:
        return self.files.whole(int(self.kept[index]))

    def name(self, index: int) -> str:
        return self.files.name(int(self.kept[index]))

    def save_index(self, workdir: str) -> None:
        self.files.save_index(workdir)


def open_split(config: TrainConfig, *, train: bool, workdir: str = "") -> FolderSplit:
    """Opens the images for training or for evaluation, without decoding them.

    Args:
      config: says the folder and, where it has several splits, which.
      train: the images for training, or those for evaluation.
      workdir: directory of the run, where an index may be kept; "" for none.

    Raises:
      UserError: there is no such folder, or its classes are of no use.
    """
    where = f"config.dataset={config.dataset!r}"
    path = root(config.dataset, where)
    splits = {name.casefold(): name for name in _folders(path)}
    train_name = _chosen("train_split", config.train_split, _TRAIN, splits, where)
    eval_name = _chosen("eval_split", config.eval_split, _EVAL, splits, where)
    if eval_name and not train_name:
        raise UserError(f"holds {eval_name} and no train beside it", where)
    directory = os.path.join(path, train_name)
    index = file_index.open_index(directory, workdir)
    names = _class_names(index, where)
    channels = _channels(index, where)
    if eval_name:
        if not train:
            index = file_index.open_index(os.path.join(path, eval_name), workdir)
        rows = np.arange(index.num_files)
    else:
        held_out = index.is_within(config.eval_share)
        rows = np.flatnonzero(~held_out if train else held_out)
    labels = _labels(index, names, directory)[rows]
    counts = np.bincount(labels, minlength=len(names))
    _check_counts(counts, names, "" if eval_name else f"config.eval_share={config.eval_share}", train)
    if train or eval_name:
        for reason, (number, first) in index.passed_over.items():
            more = f", and {number - 1:,} more" if number > 1 else ""
            report.warn(f"{first}{more}: {reason}; passed over")
    return FolderSplit(index, rows, labels, names, channels)


def in_memory(split: FolderSplit, config: TrainConfig) -> DecodedFolderSplit:
    """Decodes all images, brought to the size that the network sees as for evaluation.

    Raises:
      UserError: there is no memory for them, or more are corrupt than the config allows.
    """
    rule = config.preprocessing(split.channels)
    images, labels, kept = encoded.decode_all(split, rule.pixels, rule.shape, config.max_corrupt_records)
    return DecodedFolderSplit(images, labels.astype(np.int32), split.class_names, split, kept)


def root(dataset: str, where: str) -> str:
    """Returns the folder that a data set's name means."""
    try:
        root = paths.expand(dataset.removeprefix(PREFIX))
    except UserError as error:
        raise error.within("config.dataset=") from error
    if not root:
        raise UserError(f"must be {PREFIX}PATH, the folder of the images", where)
    if paths.is_remote(root):
        raise UserError("must be on this machine", where)
    if not os.path.isdir(root):
        raise UserError("is no folder" if os.path.exists(root) else "no such folder", where)
    return root


def _folders(path: str) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones are left out."""
    try:
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", path) from error


def _chosen(field: str, value: str, usual: tuple[str, ...], splits: dict[str, str], where: str) -> str:
    """Returns the name of a split's folder, among `splits` by their names in lower case; "" for none."""
    if value in splits.values():
        return value
    if value in ("", usual[0]):
        return next((splits[name] for name in usual if name in splits), "")
    there = ", ".join(splits.values()) or "none"
    raise UserError(f"{where} holds no such folder; there are: {there}", f"config.{field}={value!r}")


def _class_names(index: FileIndex, where: str) -> tuple[str, ...]:
    """Returns the names of the classes, each of which has images.

    Raises:
      UserError: there are fewer than two, or one without.
    """
    counts = dict.fromkeys((f for f in index.folders if os.sep not in f), 0)
    for folder, number in zip(index.folders, np.bincount(index.folder_of).tolist(), strict=False):
        counts[folder.partition(os.sep)[0]] += number
    if len(counts) < 2:
        text = f"{index.directory} must hold a folder of images for each class, and at least two"
        if counts:
            (only,) = counts
            splits = [n for n in _folders(os.path.join(index.directory, only)) if n.casefold() in _TRAIN]
            text += f"; there is {only}" + (", which could be the data set itself" if splits else "")
        raise UserError(text, where)
    if empty := [name for name, number in counts.items() if not number]:
        more = f" and {len(empty) - 1} more" if empty[1:] else ""
        raise UserError(
            f"holds no image ({' '.join(decoding.SUFFIXES)}){more}; fill or remove it",
            os.path.join(index.directory, empty[0]),
        )
    for name in counts:
        if not name.isprintable():
            raise UserError(
                "must be printable and in UTF-8, as the name of a class",
                os.path.join(index.directory, name),
            )
    return tuple(counts)


def _labels(index: FileIndex, names: tuple[str, ...], directory: str) -> np.ndarray:
    """Returns the label of each file, int32 `[N]`; `directory` holds the folders of the classes."""
    numbers = {name: label for label, name in enumerate(names)}
    classes = [folder.partition(os.sep)[0] for folder in index.folders]
    for name in classes:
        if name not in numbers:
            raise UserError(
                f"no such class is in {directory}; there are {', '.join(names)}",
                os.path.join(index.directory, name),
            )
    return np.array([numbers[name] for name in classes], np.int32)[index.folder_of]


def _check_counts(counts: np.ndarray, names: tuple[str, ...], share: str, train: bool) -> None:
    """Refuses classes without training images, and tells of those without images for evaluation."""
    if not (missing := [name for name, number in zip(names, counts, strict=True) if not number]):
        return
    listed = ", ".join(missing[:5]) + (" and more" if missing[5:] else "")
    because = f" ({share})" if share else ""
    if train:
        raise UserError(f"keeps all images of {listed} for evaluation", share)
    if not counts.any():
        more = "; more images, or a larger share, would do" if share else ""
        raise UserError(f"there are no images for evaluation{because}{more}")
    report.warn(f"no image for evaluation is of {listed}{because}")


def _channels(index: FileIndex, where: str) -> int:
    """Returns 1 if no image has colours among some that lie evenly among all, else 3."""
    rows = spread(index.num_files, _LOOK)
    gray, reason = [], ""
    for row in rows:
        try:
            with Image.open(index.path(row), formats=decoding.FORMATS) as image:
                gray.append(bool(_GRAY.fullmatch(image.mode)))
        # Pillow raises whatever it comes upon in bytes that are wrong.
        except Exception as error:
            reason = reason or f"{index.path(row)}: {summary(error)}"
    if not gray:
        raise UserError(f"none of {len(rows):,} images looked at can be read ({reason})", where)
    return 1 if all(gray) else 3
