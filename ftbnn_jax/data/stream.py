"""Batches decoded by tf.data, or one image at a time where a record is corrupt."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ftbnn_jax import report
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import decode, sets, tfrecords
from ftbnn_jax.host import machine

Batch = dict[str, np.ndarray]

# Images that one call of the graph decodes and one of Python resizes, so that the call costs little.
_GROUP = 32
# Images in flight. They leave in order: with one a core, a large image would have the other cores wait.
IN_FLIGHT_PER_CORE = 4


class Stream:
    """Decodes the images of a split, in a given order.

    tf.data does it, with one graph on all cores. Where that fails, the batch in question is built image
    by image, corrupt ones are dealt with, and tf.data goes on behind it. What a batch holds depends on
    its step alone, whichever way it was built.

    Args:
      split: images.
      config: says how to crop or preprocess, and how many corrupt records to put up with.
      indices_of: from a step to the indices of its images and the positions in the training that their
        augmentation is drawn from, int64 `[n]` each.
      batch_size: n; the last step can have fewer.
      train: whether to crop at random, and to put the next record of the split in the place of a corrupt
        one, rather than preprocess the whole image and give blanks.
    """

    def __init__(
        self,
        split: sets.Split,
        config: TrainConfig,
        indices_of: Callable[[int], tuple[np.ndarray, np.ndarray]],
        batch_size: int,
        train: bool,
    ):
        self._tf = tfrecords.import_tensorflow()
        self._split = split
        self._config = config
        self._indices_of = indices_of
        self._batch_size = batch_size
        self._train = train
        self._rule = config.preprocessing(split.channels)
        # Traced once, not once for each image of a group.
        self._decode = self._tf.function(self._decode_image)

    def batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """Yields the batches of steps from `first_step` up to `last_step`.

        Yields:
          `image`, uint8 `[n, image_size, image_size, C]`, `label`, int32 `[n]`, and `weight`, float32
          `[n]`: 1, or 0 for the blank of a corrupt record.

        Raises:
          UserError: there are more corrupt records than the config allows, or a file cannot be read.
        """
        step = first_step
        while step < last_step:
            try:
                for batch in self._fast(step, last_step):
                    yield {**batch, "weight": np.ones(len(batch["label"]), np.float32)}
                    step += 1
                continue
            except self._tf.errors.OpError as error:
                if not isinstance(self._split, tfrecords.RecordSplit):
                    raise
                reason = tfrecords.first_line(error)
            yield self._careful_batch(step, reason)
            step += 1

    def _fast(self, first_step: int, last_step: int) -> Iterator[Batch]:
        tf, split, cores = self._tf, self._split, machine.num_cores()
        # As equal as they can be; a step that does not fill them repeats its last image.
        groups = math.ceil(self._batch_size / _GROUP)
        each = math.ceil(self._batch_size / groups)
        in_flight = max(2, math.ceil(IN_FLIGHT_PER_CORE * cores / each))

        def read(step):
            indices, positions = self._indices_of(int(step))
            missing = (0, groups * each - len(indices))
            indices, positions = (np.pad(x, missing, "edge") for x in (indices, positions))
            if isinstance(split, tfrecords.RecordSplit):
                return *split.read_many(indices), positions
            return split.images[indices], split.labels[indices], positions

        def fetch(step):
            encoded = isinstance(split, tfrecords.RecordSplit)
            types = tf.string if encoded else tf.uint8, tf.int32, tf.int64
            images, labels, positions = tf.numpy_function(read, [step], types)
            shape = () if encoded else split.images.shape[1:]
            shapes = zip((images, labels, positions), (shape, (), ()), strict=True)
            return tuple(tf.reshape(x, (groups, each, *rest)) for x, rest in shapes)

        data = tf.data.Dataset.range(first_step, last_step).map(fetch).prefetch(1).unbatch()
        data = data.map(self._examples, num_parallel_calls=in_flight).batch(groups).prefetch(2)
        data = data.with_options(tf_data_options(cores))
        for step, batch in zip(range(first_step, last_step), data.as_numpy_iterator(), strict=True):
            count = len(self._indices_of(step)[0])
            yield {k: v.reshape(-1, *v.shape[2:])[:count] for k, v in batch.items()}

    def _careful_batch(self, step: int, reason: str) -> Batch:
        """Builds the batch of one step, image by image; `reason` is why `_fast` could not."""
        indices, positions = self._indices_of(step)
        examples, corrupt = [], 0
        for index, position in zip(indices, positions, strict=True):
            example, skipped = self._careful_example(int(index), position)
            examples.append(example)
            corrupt += skipped
        if not corrupt:
            report.warn(f"batch {step} could not be read ({reason}); it could the second time")
        return {key: np.stack([e[key] for e in examples]) for key in examples[0]}

    def _careful_example(self, index: int, position: np.int64) -> tuple[dict[str, Any], int]:
        """Returns an image, label and weight, and how many corrupt records were met on the way."""
        split, config = self._split, self._config
        for skipped in itertools.count():
            candidate = (index + skipped) % split.num_examples
            try:
                images, labels = split.read_many(np.array([candidate]))
                try:
                    group = self._examples(self._tf.constant(images), labels, position[None])
                except self._tf.errors.InvalidArgumentError as error:
                    # Pillow says what is wrong with an image, TensorFlow that something is.
                    decode.from_bytes(images[0], split.channels)
                    raise tfrecords.CorruptRecordError(tfrecords.first_line(error)) from error
                example = {"image": group["image"].numpy()[0], "label": labels[0]}
                return example | {"weight": np.float32(1)}, skipped
            except tfrecords.CorruptRecordError as error:
                reason = str(error)
            split.report_corrupt(candidate, reason, config.max_corrupt_records)
            if not self._train:
                blank = {"image": np.zeros(self._rule.shape, np.uint8), "label": np.int32(0)}
                return blank | {"weight": np.float32(0)}, 1

    def _examples(self, images: Any, labels: Any, positions: Any) -> dict[str, Any]:
        """Decodes a group of images, brings them to size, and puts their labels beside them."""
        tf, positions = self._tf, self._tf.convert_to_tensor(positions)
        parts = [self._decode(images[i], positions[i]) for i in range(images.shape[0])]
        if self._train:
            windows, mirrored = zip(*parts, strict=True)
            size = self._rule.size
            resized = tf.numpy_function(
                lambda mirrored, *windows: decode.resize(windows, mirrored, size),
                [tf.stack(mirrored), *windows],
                tf.uint8,
            )
        else:
            resized = tf.numpy_function(lambda *images: self._rule.stack(images), parts, tf.uint8)
        return {"image": resized, "label": labels}

    def _decode_image(self, image: Any, position: Any) -> Any:
        """A window of the image and whether to mirror it, or, for evaluation, the whole image."""
        if self._train:
            return decode.random_crop(self._tf, image, position, self._config, self._split.channels)
        return decode.whole(self._tf, image, self._split.channels)


def decode_whole(split: sets.Split, index: int) -> np.ndarray:
    """Returns one image as large as it is stored: uint8 `[H, W, C]`.

    Pillow decodes it, whatever decodes it for evaluation: as somebody does who has the file alone.
    """
    if isinstance(split, sets.ArraySplit):
        return split.images[index]
    encoded, _ = split.example(index)
    return decode.from_bytes(encoded, split.channels)


def tf_data_options(cores: int) -> Any:
    """Options for a pipeline whose stages have their sizes already: the cores are for decoding."""
    options = tfrecords.import_tensorflow().data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.experimental_optimization.map_and_batch_fusion = True
    options.threading.private_threadpool_size = cores
    options.threading.max_intra_op_parallelism = 1
    return options
