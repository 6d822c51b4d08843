"""Batches of decoded images in a given order, with what cannot be decoded told and replaced."""

from collections.abc import Callable, Iterator

import numpy as np

from ftbnn_jax import report
from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import lazy, recovery, tf_decoder, thread_decoder
from ftbnn_jax.data.split import Batch, Split


class Stream:
    """Decodes the images of a split, in a given order: by TensorFlow where it is installed.

    Where that fails, `recovery` builds the batch in question, and decoding goes on behind it. What a
    batch holds depends on its step alone, whichever way it was built. Without TensorFlow, evaluation
    sees the same pixels, and training random crops of the same kind, but other ones.

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
        split: Split,
        config: TrainConfig,
        indices_of: Callable[[int], tuple[np.ndarray, np.ndarray]],
        batch_size: int,
        train: bool,
    ):
        self._split = split
        self._limit = config.max_corrupt_records
        self._indices_of = indices_of
        rule = config.preprocessing(split.channels)
        self._blank = None if train else rule.shape
        module = tf_decoder if lazy.has_tensorflow() else thread_decoder
        self._decoder = module.Decoder(split, config, indices_of, batch_size, train)

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
                for batch in self._decoder.batches(step, last_step):
                    yield {**batch, "weight": np.ones(len(batch["label"]), np.float32)}
                    step += 1
                return
            except self._decoder.failures() as error:
                reason = lazy.first_line(error)
            batch, corrupt = recovery.batch(
                self._split,
                self._decoder.decode,
                *self._indices_of(step),
                limit=self._limit,
                blank=self._blank,
            )
            if not corrupt:
                report.warn(f"batch {step} could not be read ({reason}); it could the second time")
            yield batch
            step += 1
