"""Small TFRecord splits, and sets of them with TFDS's metadata."""

import dataclasses

import pytest

from ftbnn_jax.train import datasets, records


@pytest.fixture(scope="module")
def few_test_images():
    """The first 66 of a set's test images are all there are: they are evaluated again and again."""
    whole = datasets.open_split

    def few(config, *, train):
        split = whole(config, train=train)
        if train or not isinstance(split, datasets.ArraySplit):
            return split
        return dataclasses.replace(split, images=split.images[:66], labels=split.labels[:66])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "open_split", few)
        yield


@pytest.fixture(scope="session")
def serialize():
    """Returns a function that makes the `tf.train.Example` of features, bytes or whole numbers."""
    train = records.import_tensorflow().train

    def example(**features):
        values = {
            key: train.Feature(bytes_list=train.BytesList(value=[value]))
            if isinstance(value, bytes)
            else train.Feature(int64_list=train.Int64List(value=[value]))
            for key, value in features.items()
        }
        return train.Example(features=train.Features(feature=values)).SerializeToString()

    return example


@pytest.fixture(scope="session")
def write_set(serialize):
    """Returns a function that writes a TFDS set of the name "own" into a directory.

    `splits` holds for each split its examples, each a dictionary of what `serialize` takes.
    """
    tf = records.import_tensorflow()
    import tensorflow_datasets as tfds

    def write(directory, splits, features=None, keys=("image", "label")):
        place = directory / "own" / "1.0.0"
        place.mkdir(parents=True)
        image = tfds.features.Image(shape=(4, 4, 1))
        features = features or {"image": image, "label": tfds.features.ClassLabel(num_classes=10)}
        for name, examples in splits.items():
            with tf.io.TFRecordWriter(f"{place}/own-{name}.tfrecord-00000-of-00001") as writer:
                for example in examples:
                    writer.write(serialize(**example))
        tfds.folder_dataset.write_metadata(
            data_dir=place,
            features=features,
            split_infos=[
                tfds.core.SplitInfo(name=name, shard_lengths=[len(examples)], num_bytes=0)
                for name, examples in splits.items()
            ],
            supervised_keys=keys,
            check_data=False,
        )
        return place

    return write


@pytest.fixture(scope="session")
def write_split(serialize):
    """Returns a function that writes images (bytes each) as records and returns their split.

    Labels are numbers, counted over all files; `per_file` records go into each.
    """
    tf = records.import_tensorflow()

    def write(directory, images, per_file=5):
        files = []
        for start in range(0, len(images), per_file):
            part = images[start : start + per_file]
            files.append(records.RecordFile(f"{directory}/train-{start // per_file}", 0, len(part)))
            with tf.io.TFRecordWriter(files[-1].path) as writer:
                for label, image in enumerate(part, start):
                    writer.write(serialize(image=image, label=label))
        names = tuple(map(str, range(len(images))))
        return records.RecordSplit(
            tuple(files), *records.index_files(files), "image", "label", names, channels=3
        )

    return write
