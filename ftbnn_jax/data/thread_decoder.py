"""Batches decoded by Pillow in threads, one a core, for where TensorFlow is not installed."""

import collections
import concurrent.futures
import functools
from collections.abc import Callable, Iterator

import numpy as np

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import decode
from ftbnn_jax.data.split import Batch, Split
from ftbnn_jax.errors import CorruptRecordError
from ftbnn_jax.host import machine
from ftbnn_jax.ops import decoding

# Images that are read together and then decoded by one thread.
_GROUP = 32
# Batches that are made before the first of them is asked for.
_AHEAD = 3


class Decoder:
    """Decodes the images of a split; the arguments are those of `stream.Stream`."""

    def __init__(
        self,
        split: Split,
        config: TrainConfig,
        indices_of: Callable[[int], tuple[np.ndarray, np.ndarray]],
        batch_size: int,
        train: bool,
    ):
        del batch_size  # Groups need not fill a batch here.
        self._split = split
        self._config = config
        self._indices_of = indices_of
        self._train = train
        self._rule = config.preprocessing(split.channels)

    def failures(self) -> tuple[type[Exception], ...]:
        """Returns what `batches` raises where a batch cannot be read or decoded."""
        return CorruptRecordError, OSError

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Yields `image` and `label` of the steps from `first_step` up to `last_step`."""
        pool = concurrent.futures.ThreadPoolExecutor(machine.num_cores(), "decoder")

        def begin(step: int) -> list[concurrent.futures.Future]:
            indices, positions = self._indices_of(step)
            starts = range(0, len(indices), _GROUP)
            parts = ((indices[s : s + _GROUP], positions[s : s + _GROUP]) for s in starts)
            return [pool.submit(self._read, *part) for part in parts]

        begun: collections.deque[list[concurrent.futures.Future]] = collections.deque()
        try:
            for step in range(first_step, last_step):
                while len(begun) < min(_AHEAD, last_step - step):
                    begun.append(begin(step + len(begun)))
                groups = [group.result() for group in begun.popleft()]
                yield {key: np.concatenate([g[key] for g in groups]) for key in groups[0]}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, indices: np.ndarray, positions: np.ndarray) -> Batch:
        images, labels = self._split.fetch(indices)
        return {"image": self.decode(images, positions), "label": labels}

    def decode(self, images: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Decodes images at once; a CorruptRecordError where one of them cannot be."""
        channels = self._split.channels
        whole = functools.partial(decoding.from_bytes, channels=channels)
        pixels = images if self._split.shape else map(whole, images)
        if not self._train:
            return self._rule.stack(pixels)
        crops = (
            decode.random_crop_of_pixels(image, int(position), self._config)
            for image, position in zip(pixels, positions, strict=True)
        )
        windows, mirrored = zip(*crops, strict=True)
        return decode.resize(windows, mirrored, self._rule.size)
