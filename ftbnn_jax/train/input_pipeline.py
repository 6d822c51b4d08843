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
from ftbnn_jax.train import datasets

Batch = dict[str, np.ndarray]

# Evaluation sees the central 224 of 256 pixels of the shorter side (Appendix C).
_EVAL_CROP = 224 / 256
# Area and aspect ratio of a random training crop, relative to the image.
_CROP_AREA = (0.08, 1.0)
_CROP_ASPECT = (3 / 4, 4 / 3)


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
        if epoch not in self._permutations:
            # A batch touches two epochs at the most.
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            rng = np.random.default_rng((self._seed, epoch))
            self._permutations[epoch] = rng.permutation(self._num_examples)
        return self._permutations[epoch]


def train_batches(
    split: datasets.Split,
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
    if config.augment == "resized_crop":
        return _crops(split, config, order, first_step, last_step, mine)
    return _shifts(split, config, order, first_step, last_step, mine)


def eval_batches(
    split: datasets.Split,
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
    for start in range(0, count, config.batch_size):
        begin = start + process_index * share
        indices = np.arange(begin, max(begin, min(begin + share, count)))
        if isinstance(split, datasets.RecordSplit):
            batch = _center_crops(split, config, indices)
        else:
            batch = {"image": split.images[indices], "label": split.labels[indices]}
        missing = share - len(indices)
        filled = {k: np.pad(v, ((0, missing),) + ((0, 0),) * (v.ndim - 1)) for k, v in batch.items()}
        filled["weight"] = np.pad(np.ones(len(indices), np.float32), (0, missing))
        yield filled


def train_batch_shapes(split: datasets.Split, config: TrainConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shape and dtype of a training batch over all hosts, as `train_batches` yields it."""
    return _batch_shapes(split, config, cropped=config.augment == "resized_crop")


def eval_batch_shapes(split: datasets.Split, config: TrainConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shape and dtype of an evaluation batch over all hosts, as `eval_batches` yields it."""
    shapes = _batch_shapes(split, config, cropped=isinstance(split, datasets.RecordSplit))
    return {**shapes, "weight": jax.ShapeDtypeStruct((config.batch_size,), np.float32)}


def _batch_shapes(split, config, cropped: bool) -> dict[str, jax.ShapeDtypeStruct]:
    size = (config.image_size, config.image_size) if cropped else split.images.shape[1:3]
    image = (config.batch_size, *size, split.channels)
    return {
        "image": jax.ShapeDtypeStruct(image, np.uint8),
        "label": jax.ShapeDtypeStruct((config.batch_size,), np.int32),
    }


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
    _, height, width, _ = split.images.shape
    padding = config.crop_padding if config.augment == "pad_crop" else 0
    for step in range(first_step, last_step):
        positions = step * config.batch_size + np.arange(config.batch_size)
        indices = order.indices(positions)[mine]
        # Drawn for the whole batch, so that the number of hosts makes no difference.
        rng = np.random.default_rng((config.seed, step))
        top, left = rng.integers(0, 2 * padding + 1, (2, config.batch_size))[:, mine]
        mirrored = rng.random(config.batch_size)[mine] < (0.5 if config.flip else 0)
        images = split.images[indices]
        if padding:
            sides = (padding, padding)
            images = np.pad(images, ((0, 0), sides, sides, (0, 0)))
        rows = top[:, None] + np.arange(height)
        columns = left[:, None] + np.arange(width)
        columns = np.where(mirrored[:, None], columns[:, ::-1], columns)
        images = images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
        yield {"image": images, "label": split.labels[indices]}


def _crops(split, config, order, first_step, last_step, mine) -> Iterator[Batch]:
    """Random scale, aspect ratio, place and mirroring, decoding no more than the crop (Appendix C)."""
    tf = datasets.import_tensorflow()
    share = mine.stop - mine.start

    def examples_of(step):
        positions = int(step) * config.batch_size + np.arange(config.batch_size)
        return order.indices(positions)[mine], positions[mine]

    def example(index, position):
        image, label = _fetch(tf, split, index)
        seed = tf.stack([tf.cast(config.seed, tf.int64), position])
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            _image_shape(tf, image),
            bounding_boxes=tf.zeros((1, 0, 4)),
            seed=seed,
            aspect_ratio_range=_CROP_ASPECT,
            area_range=_CROP_AREA,
            use_image_if_no_bounding_boxes=True,
        )
        crop = _decode_crop(tf, image, begin[0], begin[1], size[0], size[1], split.channels)
        crop = _resize(tf, crop, config.image_size)
        if config.flip:
            # Another seed than the crop's, or the two would depend on each other.
            draw = tf.random.stateless_uniform((), seed=seed + tf.constant([1, 0], tf.int64))
            crop = tf.cond(draw < 0.5, lambda: crop[:, ::-1], lambda: crop)
        return {"image": crop, "label": label}

    data = tf.data.Dataset.range(first_step, last_step)
    data = data.map(lambda step: tf.numpy_function(examples_of, [step], (tf.int64, tf.int64)))
    data = data.unbatch().map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    yield from data.batch(share, drop_remainder=True).prefetch(2).as_numpy_iterator()


def _center_crops(split: datasets.RecordSplit, config: TrainConfig, indices: np.ndarray) -> Batch:
    """The central square of each image, at the network's size."""
    tf = datasets.import_tensorflow()

    def example(index):
        image, label = _fetch(tf, split, index)
        height, width = tf.unstack(_image_shape(tf, image)[:2])
        side = tf.cast(tf.round(_EVAL_CROP * tf.cast(tf.minimum(height, width), tf.float32)), tf.int32)
        crop = _decode_crop(
            tf, image, (height - side) // 2, (width - side) // 2, side, side, split.channels
        )
        return {"image": _resize(tf, crop, config.image_size), "label": label}

    if not len(indices):
        shape = (0, config.image_size, config.image_size, split.channels)
        return {"image": np.zeros(shape, np.uint8), "label": np.zeros(0, np.int32)}
    data = tf.data.Dataset.from_tensor_slices(indices)
    data = data.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return next(data.batch(len(indices)).as_numpy_iterator())


def _fetch(tf: Any, split: datasets.Split, index: Any) -> tuple[Any, Any]:
    """Returns an image, still encoded if it lies on disk, and its label."""
    if isinstance(split, datasets.ArraySplit):
        image, label = tf.numpy_function(
            lambda i: (split.images[i], split.labels[i]), [index], (tf.uint8, tf.int32)
        )
        image.set_shape(split.images.shape[1:])
    else:
        import tensorflow_datasets as tfds

        serialized = tf.numpy_function(split.read, [index], tf.string)
        features = split.features.deserialize_example(
            serialized, decoders={split.image_key: tfds.decode.SkipDecoding()}
        )
        image, label = features[split.image_key], features[split.label_key]
    label = tf.cast(label, tf.int32)
    label.set_shape(())
    return image, label


def _image_shape(tf: Any, image: Any) -> Any:
    """Returns int32 (height, width, channels) without decoding a JPEG's pixels."""
    if image.dtype != tf.string:
        return tf.shape(image)
    return tf.cond(
        tf.image.is_jpeg(image),
        lambda: tf.image.extract_jpeg_shape(image),
        lambda: tf.shape(tf.io.decode_image(image, expand_animations=False)),
    )


def _decode_crop(
    tf: Any, image: Any, top: Any, left: Any, height: Any, width: Any, channels: int
) -> Any:
    """Returns the uint8 crop of an image; of a JPEG, only the blocks it touches are decoded."""

    def crop(pixels):
        return tf.image.crop_to_bounding_box(pixels, top, left, height, width)

    if image.dtype != tf.string:
        return crop(image)
    window = tf.stack([top, left, height, width])
    pixels = tf.cond(
        tf.image.is_jpeg(image),
        lambda: tf.image.decode_and_crop_jpeg(image, window, channels=channels),
        lambda: crop(tf.io.decode_image(image, channels=channels, expand_animations=False)),
    )
    pixels.set_shape((None, None, channels))
    return pixels


def _resize(tf: Any, image: Any, size: int) -> Any:
    """Bilinear, back to uint8."""
    resized = tf.image.resize(image, (size, size), tf.image.ResizeMethod.BILINEAR)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
