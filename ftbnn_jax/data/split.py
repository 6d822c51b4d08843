"""What a split of a data set is: images with labels, readable at any index and in any order."""

import abc
import dataclasses
from typing import ClassVar

import numpy as np

from ftbnn_jax import report
from ftbnn_jax.errors import UserError

Batch = dict[str, np.ndarray]


def spread(count: int, most: int) -> list[int]:
    """Returns up to `most` of the numbers below `count`, which lie evenly among them, in order."""
    return np.unique(np.linspace(0, count - 1, most).astype(int)).tolist()


@dataclasses.dataclass(frozen=True)
class Split(abc.ABC):
    """Images of one data set.

    Attributes:
      num_examples: how many there are.
      channels: colour channels of an image.
      class_names: one name a class, in the order of the labels.
      corrupt: indices of the images that were met and could not be read.
      remedy: what to do where too many are, for a message.
    """

    remedy: ClassVar[str] = "prepare the set again"
    corrupt: set[int] = dataclasses.field(default_factory=set, kw_only=True)

    @property
    @abc.abstractmethod
    def num_examples(self) -> int: ...

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int, int] | None:
        """Shape `[H, W, C]` of the pixels that `fetch` gives; None where it gives encoded images."""

    @abc.abstractmethod
    def fetch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images and the labels, int32 `[n]`, at some indices.

        Images are uint8 `[n, H, W, C]` where all have one `shape`, else files' bytes, objects `[n]`.

        Raises:
          CorruptRecordError: one of them cannot be read.
          UserError: a file cannot be read, or a label is none of the classes.
        """

    @abc.abstractmethod
    def whole(self, index: int) -> np.ndarray:
        """Returns one image as large as it is stored: uint8 `[H, W, C]`.

        Pillow decodes it, whatever decodes it for evaluation: as somebody does who has the file alone.

        Raises:
          CorruptRecordError: it cannot be read or decoded.
          UserError: its file cannot be read.
        """

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Returns where an image is, for a message."""

    def save_index(self, workdir: str) -> None:  # noqa: B027, most splits have none.
        """Saves where the images are, if finding them took long, for the next start of a run.

        Args:
          workdir: directory of the run.
        """

    def report_corrupt(self, index: int, reason: str, limit: int) -> None:
        """Counts a corrupt record and warns of it, the first time that it is met.

        Raises:
          UserError: the split has more than `limit` of them, or nothing else.
        """
        known = index in self.corrupt
        self.corrupt.add(index)
        if len(self.corrupt) == self.num_examples:
            raise UserError(
                f"{self.name(index)}: corrupt ({reason}), and so is every other record of the split; "
                f"{self.remedy}"
            )
        if len(self.corrupt) > limit:
            raise UserError(
                f"{self.name(index)}: corrupt ({reason}), as {len(self.corrupt) - 1} before it; "
                f"config.max_corrupt_records={limit} allows no more: {self.remedy}"
            )
        if not known:
            report.warn(f"{self.name(index)}: corrupt ({reason}); passed over")


@dataclasses.dataclass(frozen=True)
class ArraySplit(Split):
    """Images in memory.

    Attributes:
      images: uint8 `[N, H, W, C]`.
      labels: int32 `[N]`.
      class_names: one name a class, in the order of the labels.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def num_examples(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        return self.images.shape[-1]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    def fetch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.images[indices], self.labels[indices]

    def whole(self, index: int) -> np.ndarray:
        return self.images[index]

    def name(self, index: int) -> str:
        return f"image {index} in memory"
