"""Record files: found, read at any index, and what happens where their bytes are damaged."""

import dataclasses
import io
import pathlib

import numpy as np
import pytest
from PIL import Image

from ftbnn_jax import config as config_lib
from ftbnn_jax.data import batches as batches_lib
from ftbnn_jax.data import tfrecords
from ftbnn_jax.data.lazy import tf
from ftbnn_jax.data.split import ArraySplit
from ftbnn_jax.errors import CorruptRecordError, UserError
from ftbnn_jax.nn import architectures

CONFIG = config_lib.TrainConfig(architectures.small((1,), 8), image_size=16, batch_size=6, seed=5)
COUNT = 17


def jpeg(number):
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 24, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


IMAGES = [jpeg(number) for number in range(COUNT)]


def flip_bit(split, index):
    """Changes one bit of a record's payload in its file."""
    path = pathlib.Path(split.files[split.file_of[index]].path)
    data = bytearray(path.read_bytes())
    data[split.offset_of[index] + split.length_of[index] // 2] ^= 4
    path.write_bytes(data)


def train_batches(split, config, first, last, **host):
    return list(batches_lib.train_batches(split, config, first_step=first, last_step=last, **host))


def assert_same(batches, expected):
    for one, other in zip(batches, expected, strict=True):
        for key in other:
            np.testing.assert_array_equal(one[key], other[key])


def assert_one_warning(text, *words):
    # libjpeg itself prints a line on what it cannot decode.
    lines = [line for line in text.splitlines() if "JPEG library" not in line]
    assert len(lines) == 1
    for word in ("warning: ", *words):
        assert word in lines[0]


def test_records_are_found_in_parts_of_several_files(tmp_path, write_split):
    whole = write_split(tmp_path, IMAGES)
    files = [
        dataclasses.replace(whole.files[0], skip=3, take=2),
        dataclasses.replace(whole.files[2], skip=1, take=3),
    ]
    part = dataclasses.replace(
        whole,
        **dict(zip(("file_of", "offset_of", "length_of"), tfrecords.index_files(files), strict=True)),
    )
    part = dataclasses.replace(part, files=tuple(files))
    # Files of 5 records: the second one here begins with record 10.
    assert [part.read(i) for i in range(5)] == [whole.read(i) for i in (3, 4, 11, 12, 13)]
    images, labels = part.fetch(np.array([4, 0, 2]))
    assert images.tolist() == [IMAGES[i] for i in (13, 3, 11)]
    assert labels.tolist() == [13, 3, 11]
    assert [part.name(i) for i in (1, 2)] == [
        f"{tmp_path}/train-0, record 4",
        f"{tmp_path}/train-2, record 1",
    ]


def test_files_in_other_file_systems_are_read_through_gfile(tmp_path, write_split):
    local, remote = write_split(tmp_path, IMAGES), write_split("ram://records", IMAGES)
    assert [remote.read(i) for i in range(COUNT)] == [local.read(i) for i in range(COUNT)]
    assert_same(train_batches(remote, CONFIG, 1, 3), train_batches(local, CONFIG, 1, 3))
    with tf.io.gfile.GFile("ram://records/train-3", "rb") as file:
        data = file.read()
    with tf.io.gfile.GFile("ram://records/short", "wb") as file:
        file.write(data[:-1])
    with pytest.raises(UserError, match="ram://records/short: truncated at record 1"):
        tfrecords.index_files([tfrecords.RecordFile("ram://records/short", 0, 2)])
    shortened = dataclasses.replace(
        remote, files=(*remote.files[:3], tfrecords.RecordFile("ram://records/short", 0, 2))
    )
    with pytest.raises(CorruptRecordError, match="ends within"):
        shortened.read(COUNT - 1)


@pytest.mark.parametrize("path", ["ram://nowhere/file", "/nowhere/file"])
def test_a_missing_file_is_named(path):
    with pytest.raises(UserError, match=f"{path}: (No such file|NotFound)"):
        tfrecords.index_files([tfrecords.RecordFile(path, 0, 1)])


def test_a_file_that_vanishes_is_named_in_one_line(tmp_path, write_split, capfd):
    split = write_split(tmp_path, IMAGES)
    (tmp_path / "train-1").unlink()
    with pytest.raises(UserError, match=r"train-1: No such file or directory$"):
        train_batches(split, CONFIG, 0, 3)
    assert capfd.readouterr().err == ""


def test_damage_is_noticed(tmp_path, write_split):
    split = write_split(tmp_path, IMAGES)
    flip_bit(split, 7)
    with pytest.raises(CorruptRecordError, match="checksum"):
        split.read(7)
    with pytest.raises(CorruptRecordError, match="checksum"):
        split.fetch(np.arange(COUNT))
    path = tmp_path / "train-2"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptRecordError, match="ends within"):
        split.read(14)


DAMAGED = {
    "bit rot": None,
    "truncated JPEG": IMAGES[7][: len(IMAGES[7]) // 2],
    "no image": b"no image",
    "empty": b"",
    "truncated PNG": b"\x89PNG\r\n\x1a\n" + bytes(20),
}


@pytest.mark.parametrize(
    ("kind", "hosts"), [*((kind, 1) for kind in DAMAGED), ("bit rot", 2), ("truncated JPEG", 2)]
)
def test_the_next_record_takes_the_place_of_a_corrupt_one(tmp_path, write_split, capfd, kind, hosts):
    """Batches are those of a split that holds record 8 twice, whoever reads them, from any step on."""
    damaged = DAMAGED[kind]
    split = write_split(tmp_path, IMAGES if damaged is None else [*IMAGES[:7], damaged, *IMAGES[8:]])
    if damaged is None:
        flip_bit(split, 7)
    arrays = {k: getattr(split, k).copy() for k in ("file_of", "offset_of", "length_of")}
    for array in arrays.values():
        array[7] = array[8]
    expected = train_batches(dataclasses.replace(split, **arrays, corrupt=set()), CONFIG, 0, 7)
    capfd.readouterr()
    for first in (0, 2):
        shares = [
            train_batches(split, CONFIG, first, 7, process_index=i, process_count=hosts)
            for i in range(hosts)
        ]
        joined = [
            {k: np.concatenate([b[k] for b in host]) for k in host[0]}
            for host in zip(*shares, strict=True)
        ]
        assert_same(joined, expected[first:])
    # 7 steps of 6 images are more than two epochs of 17: it was met several times.
    assert split.corrupt == {7}
    assert_one_warning(capfd.readouterr().err, f"{tmp_path}/train-1, record 2: corrupt (")


def test_the_record_after_the_last_is_the_first(tmp_path, write_split):
    split = write_split(tmp_path, IMAGES)
    flip_bit(split, COUNT - 1)
    labels = np.concatenate([b["label"] for b in train_batches(split, CONFIG, 0, 3)])[:COUNT]
    assert sorted(labels) == [0, *range(COUNT - 1)]


@pytest.mark.parametrize(("damaged", "limit"), [((3,), 0), ((3, 4, 12), 2)])
def test_more_corrupt_records_than_allowed_end_the_run(tmp_path, write_split, damaged, limit):
    split = write_split(tmp_path, IMAGES)
    for index in damaged:
        flip_bit(split, index)
    config = dataclasses.replace(CONFIG, max_corrupt_records=limit)
    with pytest.raises(UserError) as error:
        train_batches(split, config, 0, 3)
    for word in (f"{tmp_path}/train-", f"{limit} before it", f"config.max_corrupt_records={limit}"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    # Every record is met once in three steps, and counted once however often it is met.
    allowed = dataclasses.replace(CONFIG, max_corrupt_records=len(damaged))
    split.corrupt.clear()
    assert len(train_batches(split, allowed, 0, 9)) == 9
    assert split.corrupt == set(damaged)


def test_the_limit_is_not_negative():
    with pytest.raises(UserError, match=r"config\.max_corrupt_records=-1: must be .*at least 0"):
        dataclasses.replace(CONFIG, max_corrupt_records=-1)


NOT_EXAMPLES = {
    "no message": (b"\xff\xff\xff", "no tf.train.Example"),
    "no image": ({"label": 1}, "0 values of the feature 'image' instead of one"),
    "no label": ({"image": IMAGES[0]}, "0 values of the feature 'label' instead of one"),
    "bytes as label": ({"image": IMAGES[0], "label": b"1"}, "0 values of the feature 'label'"),
    "number as image": ({"image": 3, "label": 1}, "0 values of the feature 'image'"),
}


@pytest.mark.parametrize("kind", NOT_EXAMPLES)
def test_payloads_that_are_no_image_with_a_label(tmp_path, serialize, kind):
    payload, told = NOT_EXAMPLES[kind]
    payload = payload if isinstance(payload, bytes) else serialize(**payload)
    with tf.io.TFRecordWriter(f"{tmp_path}/one") as writer:
        writer.write(payload)
    files = (tfrecords.RecordFile(f"{tmp_path}/one", 0, 1),)
    split = tfrecords.RecordSplit(files, *tfrecords.index_files(files), "image", "label", ("0", "1"), 3)
    with pytest.raises(CorruptRecordError, match=told):
        split.example(0)


def test_a_split_of_corrupt_records_alone_is_an_error(tmp_path, write_split):
    split = write_split(tmp_path, [b"no image"] * 3)
    with pytest.raises(UserError, match="every other record"):
        train_batches(split, CONFIG, 0, 1)


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_leaves_corrupt_records_out(tmp_path, write_split, capfd, hosts):
    split = write_split(tmp_path, [*IMAGES[:7], b"no image", *IMAGES[8:]])
    for _ in range(2):
        batches = [
            batch
            for i in range(hosts)
            for batch in batches_lib.eval_batches(split, CONFIG, process_index=i, process_count=hosts)
        ]
        seen = np.concatenate([b["label"][b["weight"] > 0] for b in batches])
        assert sorted(seen) == sorted({*range(COUNT)} - {7})
        assert {len(b["image"]) for b in batches} == {6 // hosts}
    assert_one_warning(capfd.readouterr().err, f"{tmp_path}/train-1, record 2")


@pytest.mark.parametrize(("count", "hosts"), [(17, 3), (17, 6), (2, 6), (6, 2)])
def test_evaluation_covers_each_record_once(tmp_path, write_split, count, hosts):
    split = write_split(tmp_path, IMAGES[:count])
    batches = [
        list(batches_lib.eval_batches(split, CONFIG, process_index=i, process_count=hosts))
        for i in range(hosts)
    ]
    assert {len(host) for host in batches} == {-(-count // 6)}
    seen = np.concatenate([b["label"][b["weight"] > 0] for host in batches for b in host])
    assert sorted(seen) == list(range(count))
    assert {b["image"].shape for host in batches for b in host} == {(6 // hosts, 16, 16, 3)}


@pytest.mark.parametrize("in_memory", [False, True])
def test_an_error_that_passes_is_told_and_changes_nothing(
    tmp_path, write_split, capfd, monkeypatch, in_memory
):
    split = write_split(tmp_path, IMAGES)
    if in_memory:
        images = np.random.default_rng(0).integers(0, 256, (COUNT, 24, 20, 3), np.uint8)
        split = ArraySplit(images, np.arange(COUNT, dtype=np.int32), split.class_names)
    expected = train_batches(split, CONFIG, 0, 4)
    read, failures = type(split).fetch, []

    def failing_once(self, indices):
        if not failures:
            failures.append(indices)
            raise OSError("connection lost")
        return read(self, indices)

    capfd.readouterr()
    monkeypatch.setattr(type(split), "fetch", failing_once)
    assert_same(train_batches(split, CONFIG, 0, 4), expected)
    assert_one_warning(capfd.readouterr().err, "batch 0", "connection lost")
    assert split.corrupt == set()


def test_no_image_before_the_first_step_is_read(tmp_path, write_split, monkeypatch):
    """What is read for steps 100,000 and 100,001, in the order in which it is."""
    split = write_split(tmp_path, IMAGES)
    order = batches_lib.Order(COUNT, CONFIG.seed).indices(np.arange(600_000, 600_012))
    read, seen = tfrecords.RecordSplit.fetch, []

    def counting(self, indices):
        seen.extend(indices)
        return read(self, indices)

    monkeypatch.setattr(tfrecords.RecordSplit, "fetch", counting)
    train_batches(split, CONFIG, 100_000, 100_002)
    assert seen == order.tolist()
