"""Batches decoded by tf.data, or one image at a time where a record is corrupt."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ftbnn_jax import machine, report
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.errors import UserError
from ftbnn_jax.train import datasets, decode, records

Batch = dict[str, np.ndarray]

# Images that are decoded at a time. They leave in order, so that with one a core a large image would
# have the other cores wait.
IN_FLIGHT_PER_CORE = 4


class Stream:
    """Decodes the images of a split, in a given order.

    tf.data does it, with one graph on all cores. Where that fails, the batch in question is built image
    by image, corrupt ones are dealt with, and tf.data goes on behind it. What a batch holds depends on
    its step alone, whichever way it was built.

    Args:
      split: images.
      config: says how to crop, and how many corrupt records to put up with.
      indices_of: from a step to the indices of its images and the positions in the training that their
        augmentation is drawn from, int64 `[n]` each.
      batch_size: n; the last step can have fewer.
      train: whether to crop at random, and to put the next record of the split in the place of a corrupt
        one, rather than crop the centre and give blanks.
    """

    def __init__(
        self,
        split: datasets.Split,
        config: TrainConfig,
        indices_of: Callable[[int], tuple[np.ndarray, np.ndarray]],
        batch_size: int,
        train: bool,
    ):
        self._tf = records.import_tensorflow()
        self._split = split
        self._config = config
        self._indices_of = indices_of
        self._batch_size = batch_size
        self._train = train

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
                if not isinstance(self._split, records.RecordSplit):
                    raise
                reason = records.first_line(error)
            yield self._careful_batch(step, reason)
            step += 1

    def _fast(self, first_step: int, last_step: int) -> Iterator[Batch]:
        tf, split, cores = self._tf, self._split, machine.num_cores()

        def read(step):
            indices, positions = self._indices_of(int(step))
            if isinstance(split, records.RecordSplit):
                return np.array(split.read_many(indices), object), positions
            return split.images[indices], split.labels[indices], positions

        def fetch(step):
            if isinstance(split, records.RecordSplit):
                serialized, positions = tf.numpy_function(read, [step], (tf.string, tf.int64))
                return *parse(tf, split, serialized), positions
            fetched = tf.numpy_function(read, [step], (tf.uint8, tf.int32, tf.int64))
            for tensor, shape in zip(fetched, (split.images.shape[1:], (), ()), strict=True):
                tensor.set_shape((None, *shape))
            return fetched

        data = tf.data.Dataset.range(first_step, last_step).map(fetch).prefetch(1).unbatch()
        data = data.map(self._example, num_parallel_calls=IN_FLIGHT_PER_CORE * cores)
        data = data.batch(self._batch_size).prefetch(2)
        yield from data.with_options(tf_data_options(cores)).as_numpy_iterator()

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
        split, config, errors = self._split, self._config, self._tf.errors
        for skipped in range(split.num_examples):
            candidate = (index + skipped) % split.num_examples
            try:
                images, labels = parse(self._tf, split, [split.read(candidate)])
                example = self._example(images[0], labels[0], position)
                return {k: v.numpy() for k, v in example.items()} | {"weight": np.float32(1)}, skipped
            except records.CorruptRecordError as error:
                reason = str(error)
            except (errors.InvalidArgumentError, errors.DataLossError) as error:
                reason = records.first_line(error)
            split.report_corrupt(candidate, reason, config.max_corrupt_records)
            if not self._train:
                shape = (config.image_size, config.image_size, split.channels)
                blank = {"image": np.zeros(shape, np.uint8), "label": np.int32(0)}
                return blank | {"weight": np.float32(0)}, 1
        raise UserError(f"{split.name(index)}: corrupt, and so is every other record of the split")

    def _example(self, image: Any, label: Any, position: Any) -> dict[str, Any]:
        tf, channels = self._tf, self._split.channels
        if self._train:
            image = decode.random_crop(tf, image, position, self._config, channels)
        else:
            image = decode.center_crop(tf, image, self._config, channels)
        return {"image": image, "label": label}


def parse(tf: Any, split: records.RecordSplit, serialized: Any) -> tuple[Any, Any]:
    """Returns the encoded images, string `[n]`, and labels, int32 `[n]`, of serialised examples."""
    parsed = tf.io.parse_example(
        serialized,
        {
            split.image_key: tf.io.FixedLenFeature((), tf.string),
            split.label_key: tf.io.FixedLenFeature((), tf.int64),
        },
    )
    return parsed[split.image_key], tf.cast(parsed[split.label_key], tf.int32)


def tf_data_options(cores: int) -> Any:
    """Options for a pipeline whose stages have their sizes already: the cores are for decoding."""
    options = records.import_tensorflow().data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.experimental_optimization.map_and_batch_fusion = True
    options.threading.private_threadpool_size = cores
    options.threading.max_intra_op_parallelism = 1
    return options
