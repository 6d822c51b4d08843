"""Where images come from: scikit-learn's digits, random images, a folder, or any set of TFDS's.

A split is either an `ArraySplit`, wholly in memory as uint8, or, where training takes random crops of
images of any size, an `EncodedSplit`, whose encoded images stay on disk.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ftbnn_jax.config import TrainConfig
from ftbnn_jax.data import catalog, encoded, folder, tfrecords
from ftbnn_jax.data.lazy import first_line, tf, tfds
from ftbnn_jax.data.split import ArraySplit, Split
from ftbnn_jax.data.tfrecords import RecordSplit
from ftbnn_jax.errors import CorruptRecordError, UserError
from ftbnn_jax.host import paths
from ftbnn_jax.ops import decoding

# Records that are looked at before a run begins: their number, and about how many bytes.
_LOOK, _LOOK_BYTES = 1000, 2**25
_FAKE_SIZES = {"train": 256, "test": 64}
_FAKE_CLASSES = 10


def open_split(config: TrainConfig, *, train: bool, workdir: str = "") -> Split:
    """Opens the training or the evaluation split of a config's data set.

    Args:
      config: says the data set, the splits, and through `augment` whether images of various sizes
        can be taken.
      train: the training split, or the one for evaluation.
      workdir: directory of the run, where `Split.save_index` may have left something; "" for none.

    Raises:
      UserError: there is no such data set or split, it holds no images of 8 bits with labels, or it has
        more classes than `config.num_classes`.
    """
    field = "train_split" if train else "eval_split"
    if config.dataset in ("digits", "fake"):
        name = config.train_split if train else config.eval_split or "test"
        if name not in ("train", "test"):
            raise UserError(f"config.{field}={name!r}: {config.dataset} has the splits train, test")
        split = _digits(name) if config.dataset == "digits" else _fake(config, name)
    elif config.dataset.startswith(folder.PREFIX):
        split = folder.open_split(config, train=train, workdir=workdir)
        if not config.crops:
            split = folder.in_memory(split, config)
    else:
        split = _tfds_split(config, field)
    if len(split.class_names) > config.num_classes > 0:
        raise UserError(
            f"config.num_classes={config.num_classes}: {config.dataset} has {len(split.class_names)}"
        )
    for field in ("pixel_mean", "pixel_std"):
        values = getattr(config, field)
        if len(values) not in (0, 1, split.channels):
            raise UserError(
                f"config.{field}={values}: {config.dataset} has {split.channels} channel(s), so give "
                f"one number or {split.channels}"
            )
    if config.mean_image and config.mean.shape[-1] != split.channels:
        raise UserError(
            f"has {config.mean.shape[-1]} channel(s); {config.dataset} has {split.channels}",
            f"config.mean_image={config.mean_image}",
        )
    return split


def directory(config: TrainConfig) -> str:
    """Returns where a data set's files lie.

    Raises:
      UserError: it has none, or is not there.
    """
    if config.dataset in catalog.BUILT_IN:
        raise UserError(
            "has no files, beside which something could be kept", f"config.dataset={config.dataset!r}"
        )
    if config.dataset.startswith(folder.PREFIX):
        return folder.root(config.dataset, f"config.dataset={config.dataset!r}")
    return os.fspath(_tfds_builder(config.dataset, config.data_dir).data_path)


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
    num_classes = config.num_classes or _FAKE_CLASSES
    labels = rng.integers(0, num_classes, count, np.int32)
    return ArraySplit(images, labels, tuple(str(n) for n in range(num_classes)))


def _data_dir(data_dir: str) -> str:
    """Returns the directory that the config, or else the environment, names, or else TFDS's own.

    Raises:
      UserError: something else is there.
    """
    name, path = "config.data_dir", data_dir
    if not path:
        name, path = "TFDS_DATA_DIR", os.environ.get("TFDS_DATA_DIR") or catalog.DATA_DIR
    try:
        root = paths.expand(path)
    except UserError as error:
        raise error.within(f"{name}=") from error
    here = tf.io.gfile if paths.is_remote(root) else os.path
    if here.exists(root) and not here.isdir(root):
        raise UserError("is no directory; TFDS's data sets lie in one", f"{name}={path}")
    return root


@functools.lru_cache(maxsize=4)
def _tfds_builder(dataset: str, data_dir: str) -> Any:
    where = f"config.dataset={dataset!r}"
    root = _data_dir(data_dir)
    # TFDS would look for an unknown name on the network before it gives up.
    catalog.check(dataset, root, where)
    try:
        builder = tfds.builder(catalog.name_for_tfds(dataset), data_dir=root)
        prepared = builder.data_path.exists() and bool(builder.info.splits)
    # TFDS hands on whatever its readers of a damaged dataset_info.json or features.json raise.
    except Exception as error:
        raise UserError(f"{where}: cannot be opened in {root}: {first_line(error)}") from error
    if not prepared:
        raise UserError(
            f"{where}: not prepared in {root}; prepare it with `python -m "
            f"ftbnn_jax.data.prepare {dataset} --data_dir={root}`, or name its place with "
            "--config.data_dir"
        )
    return builder


def _tfds_split(config: TrainConfig, field: str) -> Split:
    builder = _tfds_builder(config.dataset, config.data_dir)
    info, splits = builder.info, builder.info.splits
    features = features_of(f"config.dataset={config.dataset!r}", info)
    if (form := info.file_format).value != "tfrecord":
        raise UserError(f"config.dataset={config.dataset!r}: prepared as {form.value}; must be tfrecord")
    default = "validation" if "validation" in splits else "test"
    name = config.train_split if field == "train_split" else config.eval_split or default
    try:
        files = tfrecords.split_files(splits[name].file_instructions)
    except (KeyError, ValueError, AssertionError):
        there = ", ".join(f"{k} ({v.num_examples:,} images)" for k, v in splits.items())
        raise UserError(f"config.{field}={name!r}: {config.dataset} has the splits {there}") from None
    if not files:
        raise UserError(f"config.{field}={name!r}: no images of {config.dataset} are in it")
    split = RecordSplit(
        files,
        *tfrecords.index_files(files),
        image_key=features.image_key,
        label_key=features.label_key,
        class_names=features.class_names,
        channels=features.shape[-1] or 3,
    )
    if config.crops:
        _look_at(split, f"config.{field}={name!r}")
        return split
    if None in features.shape[:2]:
        raise UserError(
            f"config.augment={config.augment!r}: the images of {config.dataset} differ in size; "
            "use 'resize_crop'"
        )
    limit = config.max_corrupt_records
    return _decoded(split, features.shape[:2], limit, f"config.{field}={name!r}")


class Features(NamedTuple):
    """The image and the label among the features of a TFDS set.

    Attributes:
      image_key: name of the image in records.
      label_key: name of the label.
      shape: `(H, W, C)` of an image, each None where images differ.
      class_names: one name a class, in the order of the labels.
    """

    image_key: str
    label_key: str
    shape: tuple[int | None, int | None, int | None]
    class_names: tuple[str, ...]


def features_of(where: str, info: Any) -> Features:
    """Finds image and label among the features of a TFDS set.

    Args:
      where: the set, for messages.
      info: its `tfds.core.DatasetInfo`; it need not be prepared.

    Raises:
      UserError: it holds no images of 8 bits with labels.
    """
    image_key, label_key = _keys(where, info)
    features = dict(_flat(info.features))
    class_names = tuple(features[label_key].names or ())
    shape, dtype = features[image_key].shape, np.dtype(features[image_key].np_dtype)
    # Pixels of 16 bits or floats would give `pixel_mean` and `pixel_std` another meaning.
    if dtype != np.uint8 or len(shape) != 3 or shape[-1] not in (1, 3, None):
        raise UserError(
            f"{where}: {image_key!r} is {dtype} of shape {shape}; must be uint8 of height, width and 1 "
            "or 3 channels"
        )
    if not class_names:
        raise UserError(f"{where}: the label {label_key!r} has no classes")
    return Features(image_key, label_key, shape, class_names)


def _flat(features: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the features of a set, those in dictionaries by the names that they have in records."""
    for key, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            yield from _flat(feature, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", feature


def _keys(where: str, info: Any) -> tuple[str, str]:
    """Returns the names of image and label: those in `supervised_keys`, or else the only ones."""
    # The last of three parts is a weight.
    parts = (info.supervised_keys or (list(info.features),) * 2)[:2]
    found = []
    for part, kind in zip(parts, (tfds.features.Image, tfds.features.ClassLabel), strict=True):
        tops = tf.nest.flatten(part)
        flat = sorted(_flat(info.features), key=lambda pair: pair[0])
        found.append([k for k, f in flat if isinstance(f, kind) and k.partition("/")[0] in tops])
    if any(len(keys) != 1 for keys in found):
        listed = [", ".join(keys) or "none" for keys in found]
        raise UserError(
            f"{where}: needs one image and one class label in its supervised_keys, "
            f"or else in all; has images: {listed[0]}; class labels: {listed[1]}"
        )
    return found[0][0], found[1][0]


def _look_at(split: RecordSplit, where: str) -> None:
    """Raises UserError if the first records have labels that are no classes, or none is readable."""
    fitting = int(np.searchsorted(np.cumsum(split.length_of), _LOOK_BYTES))
    examples = split.first(min(_LOOK, max(1, fitting)))
    readable, labels, reason = False, {}, ""
    for index, example in enumerate(examples):
        try:
            if isinstance(example, CorruptRecordError):
                raise example
            labels[index] = example[1]
            # One suffices, and mostly the first is.
            readable = readable or decoding.from_bytes(example[0], split.channels).size > 0
        except CorruptRecordError as error:
            reason = reason or f"{split.name(index)}: {error}"
    if not readable and len(examples) == split.num_examples:
        raise UserError(f"{where}: none of its {len(examples):,} images can be read ({reason})")
    _check_labels(split, np.array(list(labels), np.int64), np.array(list(labels.values())), where)


def _check_labels(split: RecordSplit, indices: np.ndarray, labels: np.ndarray, where: str) -> None:
    """Raises UserError if labels of the records at some indices are none of the classes."""
    wrong = tfrecords.wrong_labels(labels, split.class_names)
    if len(wrong):
        raise UserError(
            f"{where}: {len(wrong):,} of {len(labels):,} labels looked at are outside 0 to "
            f"{len(split.class_names) - 1}, the first is {labels[wrong[0]]} "
            f"({split.name(int(indices[wrong[0]]))}); use a split whose images all have labels"
        )


def _decoded(split: RecordSplit, shape: tuple[int, int], limit: int, where: str) -> ArraySplit:
    """Decodes a split of images of one size, and leaves out up to `limit` corrupt records."""

    def checked(pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[:2] != shape:
            found, size = ("{} x {}".format(*s) for s in (pixels.shape, shape))
            raise CorruptRecordError(f"an image of {found} pixels in a set of {size}")
        return pixels

    images, labels, kept = encoded.decode_all(split, checked, (*shape, split.channels), limit)
    _check_labels(split, kept, labels, where)
    return ArraySplit(images, labels.astype(np.int32), split.class_names)
