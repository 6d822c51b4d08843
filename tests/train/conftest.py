"""Small TFRecord splits."""

import pytest

from ftbnn_jax.train import records


@pytest.fixture(scope="session")
def write_split():
    """Returns a function that writes images (bytes each) as records and returns their split.

    Labels are numbers, counted over all files; `per_file` records go into each.
    """
    tf = records.import_tensorflow()

    def serialize(image, label):
        features = {
            "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        }
        return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()

    def write(directory, images, per_file=5):
        files = []
        for start in range(0, len(images), per_file):
            part = images[start : start + per_file]
            files.append(records.RecordFile(f"{directory}/train-{start // per_file}", 0, len(part)))
            with tf.io.TFRecordWriter(files[-1].path) as writer:
                for label, image in enumerate(part, start):
                    writer.write(serialize(image, label))
        names = tuple(map(str, range(len(images))))
        return records.RecordSplit(
            tuple(files), *records.index_files(files), "image", "label", names, channels=3
        )

    return write
