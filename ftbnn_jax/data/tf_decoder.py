"""Batches decoded by tf.data, with one graph on all cores."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import decode
from ftbnn_jax.data.lazy import first_line, tf
from ftbnn_jax.data.split import Batch, Split
from ftbnn_jax.errors import CorruptRecordError
from ftbnn_jax.host import machine

# Images that one call of the graph decodes and one of Python resizes, so that the call costs little.
_GROUP = 32
# Images in flight. They leave in order: with one a core, a large image would have the other cores wait.
IN_FLIGHT_PER_CORE = 4


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
        self._split = split
        self._config = config
        self._indices_of = indices_of
        self._batch_size = batch_size
        self._train = train
        self._rule = config.preprocessing(split.channels)
        # Traced once, not once for each image of a group.
        self._decode = tf.function(self._decode_image)

    def failures(self) -> type[Exception]:
        """Returns what `batches` raises where a batch cannot be read or decoded."""
        return tf.errors.OpError

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Yields `image` and `label` of the steps from `first_step` up to `last_step`."""
        cores = machine.num_cores()
        stored = tf.uint8 if self._split.shape else tf.string
        # As equal as they can be; a step that does not fill them repeats its last image.
        groups = math.ceil(self._batch_size / _GROUP)
        each = math.ceil(self._batch_size / groups)
        in_flight = max(2, math.ceil(IN_FLIGHT_PER_CORE * cores / each))

        def read(step):
            indices, positions = self._indices_of(int(step))
            missing = (0, groups * each - len(indices))
            indices, positions = (np.pad(x, missing, "edge") for x in (indices, positions))
            return *self._split.fetch(indices), positions

        def fetch(step):
            images, labels, positions = tf.numpy_function(read, [step], (stored, tf.int32, tf.int64))
            shapes = zip((images, labels, positions), (self._split.shape or (), (), ()), strict=True)
            return tuple(tf.reshape(x, (groups, each, *rest)) for x, rest in shapes)

        def decode_group(images, labels, positions):
            return {"image": self._decode_group(images, positions), "label": labels}

        data = tf.data.Dataset.range(first_step, last_step).map(fetch).prefetch(1).unbatch()
        data = data.map(decode_group, num_parallel_calls=in_flight).batch(groups).prefetch(2)
        data = data.with_options(tf_data_options(cores))
        for step, batch in zip(range(first_step, last_step), data.as_numpy_iterator(), strict=True):
            count = len(self._indices_of(step)[0])
            yield {k: v.reshape(-1, *v.shape[2:])[:count] for k, v in batch.items()}

    def decode(self, images: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Decodes images at once; a CorruptRecordError where one of them cannot be."""
        try:
            return self._decode_group(tf.constant(images), tf.constant(positions)).numpy()
        except tf.errors.InvalidArgumentError as error:
            raise CorruptRecordError(first_line(error)) from error

    def _decode_group(self, images: Any, positions: Any) -> Any:
        """Decodes a group of images and brings them to size."""
        parts = [self._decode(images[i], positions[i]) for i in range(images.shape[0])]
        if self._train:
            windows, mirrored = zip(*parts, strict=True)
            size = self._rule.size
            return tf.numpy_function(
                lambda mirrored, *windows: decode.resize(windows, mirrored, size),
                [tf.stack(mirrored), *windows],
                tf.uint8,
            )
        return tf.numpy_function(lambda *images: self._rule.stack(images), parts, tf.uint8)

    def _decode_image(self, image: Any, position: Any) -> Any:
        """A window of the image and whether to mirror it, or, for evaluation, the whole image."""
        if self._train:
            return decode.random_crop(image, position, self._config, self._split.channels)
        return decode.whole(image, self._split.channels)


def tf_data_options(cores: int) -> Any:
    """Options for a pipeline whose stages have their sizes already: the cores are for decoding."""
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.experimental_optimization.map_and_batch_fusion = True
    options.threading.private_threadpool_size = cores
    options.threading.max_intra_op_parallelism = 1
    return options
