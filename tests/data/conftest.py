"""Small sets of TFRecord splits with TFDS's metadata."""

import pytest

from ftbnn_jax.data.lazy import tf, tfds


@pytest.fixture(scope="session")
def write_set(serialize):
    """Returns a function that writes a TFDS set of the name "own" into a directory.

    `splits` holds for each split its examples, each a dictionary of what `serialize` takes.
    """

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
