"""Batches of uint8 images, in an order that is a function of the seed and the step alone.

Image number p of the training (counted from 0 over all epochs) is the same whatever step a run started
at and however many hosts read it: its place in the data is a permutation drawn from (seed, epoch), its
augmentation is drawn from (seed, step) or (seed, p). So a run needs to remember its step, nothing else.
"""

import collections
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import stream
from ftbnn_jax.data.split import Batch, Split
from ftbnn_jax.ops import preprocessing


def num_train_steps(config: TrainConfig, num_examples: int) -> int:
    """Returns how many steps a run takes: `num_steps`, or what `num_epochs` asks for, rounded up."""
    return config.num_steps or math.ceil(config.num_epochs * num_examples / config.batch_size)


def steps_per_epoch(config: TrainConfig, num_examples: int) -> int:
    """Returns the steps in one pass over the training split, rounded up."""
    return math.ceil(num_examples / config.batch_size)


class Order:
    """The order of the training images.

    Args:
      num_examples: images in the split.
      seed: of the permutations.
    """

    def __init__(self, num_examples: int, seed: int):
        self._num_examples = num_examples
        self._seed = seed
        self._permutations: dict[int, np.ndarray] = {}

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """Maps positions in the training (int64) to indices of images (int64)."""
        epochs = positions // self._num_examples
        places = positions % self._num_examples
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._permutation(int(epoch))[places[here]]
        return indices

    def _permutation(self, epoch: int) -> np.ndarray:
        # Several threads may ask: none relies on what another has kept.
        permutation = self._permutations.get(epoch)
        if permutation is None:
            permutation = np.random.default_rng((self._seed, epoch)).permutation(self._num_examples)
            # A batch touches two epochs at the most.
            kept = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations = {**kept, epoch: permutation}
        return permutation


def train_batches(
    split: Split,
    config: TrainConfig,
    *,
    first_step: int,
    last_step: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields this host's share of every training batch from `first_step` up to `last_step`.

    Args:
      split: training images.
      config: gives seed, batch size and augmentation.
      first_step: step (from 0) to start at.
      last_step: step before which to stop.
      process_index: number of this host.
      process_count: number of hosts; divides the batch size.

    Yields:
      `image`, uint8 `[batch_size / process_count, H, W, C]`, and `label`, int32.
    """
    share = config.batch_size // process_count
    mine = slice(process_index * share, (process_index + 1) * share)
    order = Order(split.num_examples, config.seed)
    if config.crops:
        return _crops(split, config, order, first_step, last_step, mine)
    return _shifts(split, config, order, first_step, last_step, mine)


def eval_batches(
    split: Split,
    config: TrainConfig,
    *,
    num_examples: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields this host's share of the evaluation images, each image once over all hosts.

    Every batch has the same size; the last ones are filled up with blank images of weight 0.

    Args:
      split: evaluation images.
      config: gives batch size and, through `augment`, whether images are cropped.
      num_examples: how many images to take from the start; 0 for all.
      process_index: number of this host.
      process_count: number of hosts.

    Yields:
      `image` and `label` as in training, and `weight`, float32 `[n]`: 1, or 0 for what fills up.
    """
    count = min(num_examples or split.num_examples, split.num_examples)
    share = config.batch_size // process_count

    def indices_of(number):
        begin = number * config.batch_size + process_index * share
        return np.arange(begin, max(begin, min(begin + share, count)))

    num_batches = math.ceil(count / config.batch_size)
    # The last batches may hold nothing for this host.
    num_filled = sum(len(indices_of(number)) > 0 for number in range(num_batches))
    rule = config.preprocessing(split.channels)
    if split.shape:
        batches = (_in_memory(split, rule, indices_of(number)) for number in range(num_filled))
    else:
        decoded = stream.Stream(split, config, lambda n: (indices_of(n),) * 2, share, train=False)
        batches = decoded.batches(0, num_filled)
    blank = {
        "image": np.zeros((share, *rule.shape), np.uint8),
        "label": np.zeros(share, np.int32),
        "weight": np.zeros(share, np.float32),
    }
    for batch in batches:
        missing = share - len(batch["label"])
        yield {k: np.concatenate([v, blank[k][:missing]]) if missing else v for k, v in batch.items()}
    for _ in range(num_batches - num_filled):
        yield blank


def with_decoded(split: Split, batches: Iterable[Batch]) -> Iterator[dict[str, Any]]:
    """Adds the whole images to the batches that `eval_batches` yields to a single host.

    Yields:
      Beside what is there, `decoded`: a list of uint8 `[H, W, C]`, as large as they are stored, and None
      for those of weight 0.
    """
    index = 0
    for batch in batches:
        decoded = []
        for weight in batch["weight"]:
            decoded.append(split.whole(index) if weight else None)
            index += 1
        yield {**batch, "decoded": decoded}


def _in_memory(split: Split, rule: preprocessing.Preprocessing, indices: np.ndarray) -> Batch:
    images, labels = split.fetch(indices)
    weight = np.ones(len(indices), np.float32)
    return {"image": rule.stack(images), "label": labels, "weight": weight}


def train_batch_shapes(split: Split, config: TrainConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shape and dtype of a training batch over all hosts, as `train_batches` yields it."""
    image = (config.batch_size, *config.preprocessing(split.channels).shape)
    return {
        "image": jax.ShapeDtypeStruct(image, np.uint8),
        "label": jax.ShapeDtypeStruct((config.batch_size,), np.int32),
    }


def eval_batch_shapes(split: Split, config: TrainConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shape and dtype of an evaluation batch over all hosts, as `eval_batches` yields it."""
    weight = jax.ShapeDtypeStruct((config.batch_size,), np.float32)
    return {**train_batch_shapes(split, config), "weight": weight}


def to_device(
    batches: Iterable[Batch], sharding: jax.sharding.Sharding, ahead: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Moves batches to the devices, a few before they are needed.

    Args:
      batches: this host's share of each batch.
      sharding: of the whole batch, over the devices of all hosts.
      ahead: how many batches to keep on the devices.
    """
    queue: collections.deque[dict[str, jax.Array]] = collections.deque()
    for batch in batches:
        queue.append({k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()})
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue


def _shifts(split, config, order, first_step, last_step, mine) -> Iterator[Batch]:
    """Random shifts and mirroring of images in memory, a whole batch at a time."""
    rule = config.preprocessing(split.channels)
    size = np.arange(config.image_size)
    padding = config.crop_padding if config.augment == "pad_crop" else 0
    for step in range(first_step, last_step):
        positions = step * config.batch_size + np.arange(config.batch_size)
        indices = order.indices(positions)[mine]
        # Drawn for the whole batch, so that the number of hosts makes no difference.
        rng = np.random.default_rng((config.seed, step))
        top, left = rng.integers(0, 2 * padding + 1, (2, config.batch_size))[:, mine]
        mirrored = rng.random(config.batch_size)[mine] < (0.5 if config.flip else 0)
        images, labels = split.fetch(indices)
        images = rule.stack(images)
        if padding:
            sides = (padding, padding)
            images = np.pad(images, ((0, 0), sides, sides, (0, 0)))
        rows, columns = top[:, None] + size, left[:, None] + size
        columns = np.where(mirrored[:, None], columns[:, ::-1], columns)
        images = images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
        yield {"image": images, "label": labels}


def _crops(split, config, order, first_step, last_step, mine) -> Iterator[Batch]:
    """Random scale, place and mirroring, decoding no more than the crop."""

    def indices_of(step):
        positions = step * config.batch_size + np.arange(config.batch_size)
        return order.indices(positions)[mine], positions[mine]

    decoded = stream.Stream(split, config, indices_of, mine.stop - mine.start, train=True)
    for batch in decoded.batches(first_step, last_step):
        yield {"image": batch["image"], "label": batch["label"]}
