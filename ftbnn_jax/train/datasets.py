"""Where images come from: scikit-learn's digits, random images, or any TFDS image classification set.

A split is either an `ArraySplit`, wholly in memory as uint8, or a `RecordSplit`, whose encoded images
stay on disk. Both can be read at any index, in any order.
"""

import dataclasses
import difflib
import functools
import os
from typing import Any

import numpy as np

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.errors import UserError
from ftbnn_jax.train import records
from ftbnn_jax.train.records import RecordSplit

_FAKE_SIZES = {"train": 256, "test": 64}


@dataclasses.dataclass(frozen=True)
class ArraySplit:
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


Split = ArraySplit | RecordSplit


def open_split(config: TrainConfig, *, train: bool) -> Split:
    """Opens the training or the evaluation split of a config's data set.

    Args:
      config: says the data set, the splits, and through `augment` whether images of various sizes
        can be taken.
      train: the training split, or the one for evaluation.

    Raises:
      UserError: there is no such data set or split, it holds no labelled images, or it has more
        classes than `config.num_classes`.
    """
    if config.dataset in ("digits", "fake"):
        name = config.train_split if train else config.eval_split or "test"
        if name not in ("train", "test"):
            field = "train_split" if train else "eval_split"
            raise UserError(f"config.{field}={name!r}: {config.dataset} has the splits train, test")
        split = _digits(name) if config.dataset == "digits" else _fake(config, name)
    else:
        split = _tfds_split(config, train)
    if len(split.class_names) > config.num_classes:
        raise UserError(
            f"config.num_classes={config.num_classes}: {config.dataset} has {len(split.class_names)}"
        )
    for field in ("pixel_mean", "pixel_std"):
        values = getattr(config, field)
        if len(values) not in (1, split.channels):
            raise UserError(
                f"config.{field}={values}: {config.dataset} has {split.channels} channel(s), so give "
                f"one number or {split.channels}"
            )
    return split


def _digits(name: str) -> ArraySplit:
    """A fixed quarter of each class is the test split: 1,347 images to train on and 450 held out."""
    from sklearn import datasets, model_selection

    digits = datasets.load_digits()
    images = (digits.images * 15).astype(np.uint8)[..., None]
    train_x, test_x, train_y, test_y = model_selection.train_test_split(
        images, digits.target.astype(np.int32), test_size=0.25, random_state=0, stratify=digits.target
    )
    names = tuple(str(n) for n in digits.target_names)
    return ArraySplit(train_x, train_y, names) if name == "train" else ArraySplit(test_x, test_y, names)


def _fake(config: TrainConfig, name: str) -> ArraySplit:
    """Random images of the network's own size, for trying a config without data."""
    count = _FAKE_SIZES[name]
    rng = np.random.default_rng((config.seed, count))
    images = rng.integers(0, 256, (count, config.image_size, config.image_size, 3), np.uint8)
    labels = rng.integers(0, config.num_classes, count, np.int32)
    return ArraySplit(images, labels, tuple(str(n) for n in range(config.num_classes)))


@functools.lru_cache(maxsize=4)
def _tfds_builder(dataset: str, data_dir: str) -> Any:
    tf = records.import_tensorflow()
    import tensorflow_datasets as tfds

    name = dataset.partition("/")[0].partition(":")[0]
    known = tfds.list_builders(with_community_datasets=False)
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or tfds.core.constants.DATA_DIR
    # Asked here, since TFDS looks for an unknown name on the network before it gives up.
    if name not in known and not tf.io.gfile.isdir(os.path.join(root, name)):
        nearest = difflib.get_close_matches(name, ["digits", "fake", *known], n=1, cutoff=0)[0]
        raise UserError(f"config.dataset={dataset!r}: no such data set; the nearest is {nearest!r}")
    try:
        builder = tfds.builder(dataset, data_dir=data_dir or None)
    except (ValueError, OSError) as error:
        raise UserError(f"config.dataset={dataset!r}: {str(error).splitlines()[0]}") from error
    if not builder.info.splits:
        archived = name == "imagenet2012"
        command = "launch/prepare_imagenet.sh" if archived else f"tfds build {dataset}"
        raise UserError(
            f"config.dataset={dataset!r}: not prepared in {root}; prepare it with "
            f"`{command} --data_dir={root}`, or name its place with --config.data_dir"
        )
    return builder


def _tfds_split(config: TrainConfig, train: bool) -> Split:
    builder = _tfds_builder(config.dataset, config.data_dir)
    import tensorflow_datasets as tfds

    features, splits = builder.info.features, builder.info.splits
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    labels = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    image_key, label_key = builder.info.supervised_keys or (images[:1] + labels[:1] + ["", ""])[:2]
    if image_key not in images or label_key not in labels:
        raise UserError(
            f"config.dataset={config.dataset!r}: needs an image and a class label, has "
            f"{', '.join(features)}"
        )
    default = "validation" if "validation" in splits else "test"
    name = config.train_split if train else config.eval_split or default
    try:
        info = splits[name]
        num_examples = info.num_examples
    except (KeyError, ValueError):
        field = "train_split" if train else "eval_split"
        raise UserError(
            f"config.{field}={name!r}: {config.dataset} has the splits {', '.join(splits)}"
        ) from None
    if not num_examples:
        raise UserError(f"config.dataset={config.dataset!r}: split {name!r} is empty")
    class_names = tuple(features[label_key].names)
    shape = features[image_key].shape
    if config.augment == "resized_crop":
        if (form := builder.info.file_format).value != "tfrecord":
            raise UserError(
                f"config.dataset={config.dataset!r}: prepared as {form.value}; must be tfrecord"
            )
        files = records.split_files(info.file_instructions)
        return RecordSplit(
            files,
            *records.index_files(files),
            image_key=image_key,
            label_key=label_key,
            class_names=class_names,
            channels=shape[-1] or 3,
        )
    if None in shape:
        raise UserError(
            f"config.augment={config.augment!r}: the images of {config.dataset} differ in size; "
            "use 'resized_crop'"
        )
    arrays = tfds.as_numpy(builder.as_dataset(split=name, batch_size=-1, shuffle_files=False))
    return ArraySplit(arrays[image_key], arrays[label_key].astype(np.int32), class_names)
