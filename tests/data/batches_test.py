"""The order of the images, their augmentation, and evaluation on every image once."""

import dataclasses
import itertools

import numpy as np
import pytest

from ftbnn_jax import config as config_lib
from ftbnn_jax.data import batches as batches_lib
from ftbnn_jax.data import decode, sets, stream, tf_decoder
from ftbnn_jax.data.lazy import tf, tfds
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures

DIGITS = config_lib.TrainConfig(
    architectures.small((1,), 8),
    dataset="digits",
    image_size=8,
    num_classes=10,
    batch_size=48,
    augment="pad_crop",
    crop_padding=1,
    pixel_mean=(0.0,),
    pixel_std=(1.0,),
)


def numbered_split(count: int, size: int = 4) -> sets.ArraySplit:
    """Images whose pixels and label all tell their number."""
    labels = np.arange(count, dtype=np.int32)
    images = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (count, size, size, 1))
    return sets.ArraySplit(images, labels, tuple(map(str, range(count))))


def train_batches(split, config, first, last, **host):
    return list(batches_lib.train_batches(split, config, first_step=first, last_step=last, **host))


def test_each_epoch_is_another_permutation():
    order = batches_lib.Order(num_examples=50, seed=3)
    epochs = order.indices(np.arange(150)).reshape(3, 50)
    for epoch in epochs:
        assert sorted(epoch) == list(range(50))
    for one, other in itertools.combinations(epochs, 2):
        assert (one != other).any()
    assert (batches_lib.Order(50, seed=4).indices(np.arange(50)) != epochs[0]).any()


def test_batches_run_on_over_the_end_of_an_epoch():
    config = dataclasses.replace(DIGITS, batch_size=20, augment="none", flip=False)
    seen = np.concatenate([b["label"] for b in train_batches(numbered_split(50), config, 0, 5)])
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50))


@pytest.mark.parametrize("count", [1, 7, 10])
def test_a_batch_may_be_larger_than_the_split(count):
    """20 images are up to 20 epochs; each holds every image once."""
    config = dataclasses.replace(DIGITS, batch_size=20, augment="none", flip=False)
    seen = np.concatenate([b["label"] for b in train_batches(numbered_split(count), config, 0, 7)])
    for epoch in seen.reshape(-1, count):
        assert sorted(epoch) == list(range(count))


@pytest.mark.parametrize("augment", ["none", "pad_crop", "resized_crop"])
def test_position_follows_from_the_step(augment):
    """A run that starts at step 3 sees what an uninterrupted one sees from there on."""
    config = dataclasses.replace(DIGITS, augment=augment)
    split = sets.open_split(config, train=True)
    whole, rest = train_batches(split, config, 0, 6), train_batches(split, config, 3, 6)
    for expected, batch in zip(whole[3:], rest, strict=True):
        np.testing.assert_array_equal(batch["image"], expected["image"])
        np.testing.assert_array_equal(batch["label"], expected["label"])


@pytest.mark.parametrize("augment", ["pad_crop", "resized_crop"])
@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_share_out_the_batch_of_one(augment, hosts):
    config = dataclasses.replace(DIGITS, augment=augment)
    split = sets.open_split(config, train=True)
    shares = [
        train_batches(split, config, 2, 4, process_index=i, process_count=hosts) for i in range(hosts)
    ]
    for step, expected in enumerate(train_batches(split, config, 2, 4)):
        for key in ("image", "label"):
            joined = np.concatenate([share[step][key] for share in shares])
            np.testing.assert_array_equal(joined, expected[key])


@pytest.mark.parametrize("train", [True, False])
def test_batches_do_not_depend_on_how_images_are_grouped(monkeypatch, train):
    """Groups of 48, 4 and 1, and of 7, of which the last of 48 images has 6."""
    config = dataclasses.replace(DIGITS, augment="resized_crop")
    split = sets.open_split(config, train=train)

    def all_batches(group):
        monkeypatch.setattr(tf_decoder, "_GROUP", group)

        def indices_of(step):
            indices = np.arange(48 * step, min(48 * (step + 1), 110))
            return indices, indices

        decoded = stream.Stream(split, config, indices_of, 48, train)
        return list(decoded.batches(0, 3))

    expected = all_batches(48)
    assert [len(b["image"]) for b in expected] == [48, 48, 14]
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in expected]), split.labels[:110])
    for group in (4, 1, 7):
        for batch, other in zip(all_batches(group), expected, strict=True):
            for key, value in other.items():
                np.testing.assert_array_equal(batch[key], value)


@pytest.mark.parametrize("channels", [1, 3])
def test_resized_windows_are_bilinear(channels):
    """Within a level of TensorFlow's; of windows smaller and larger than the result."""
    rng = np.random.default_rng(0)
    sizes = [(9, 40), (24, 24), (100, 31), (1, 1)]
    windows = [rng.integers(0, 256, (*size, channels), np.uint8) for size in sizes]
    mirrored = [False, True, True, False]
    resized = decode.resize(windows, mirrored, 24)
    assert resized.dtype == np.uint8
    assert resized.shape == (4, 24, 24, channels)
    for result, window, mirror in zip(resized, windows, mirrored, strict=True):
        expected = tf.image.resize(tf.cast(window, tf.float32), (24, 24)).numpy()
        expected = expected[:, ::-1] if mirror else expected
        assert np.abs(result - expected).max() < 1


def test_shifted_images_are_windows_of_the_padded_ones():
    split = sets.open_split(DIGITS, train=True)
    (batch,) = train_batches(split, DIGITS, 0, 1)
    indices = batches_lib.Order(split.num_examples, DIGITS.seed).indices(np.arange(48))
    offsets = set()
    for image, index in zip(batch["image"], indices, strict=True):
        padded = np.pad(split.images[index], ((1, 1), (1, 1), (0, 0)))
        windows = {
            (top, left, flip): np.flip(padded[top : top + 8, left : left + 8], axis=1 if flip else ())
            for top in range(3)
            for left in range(3)
            for flip in (False, True)
        }
        found = [key for key, window in windows.items() if (window == image).all()]
        assert found
        offsets.update(found[:1])
    assert len(offsets) > 9


@pytest.mark.parametrize("flip", [False, True])
def test_mirroring_is_optional_and_happens_to_about_half(flip):
    split = sets.open_split(DIGITS, train=True)
    config = dataclasses.replace(DIGITS, augment="none", flip=flip, batch_size=400)
    (batch,) = train_batches(split, config, 0, 1)
    originals = split.images[batches_lib.Order(split.num_examples, 0).indices(np.arange(400))]
    mirrored = (batch["image"] != originals).any((1, 2, 3)).mean()
    assert 0.4 < mirrored < 0.6 if flip else mirrored == 0


@pytest.mark.parametrize(("count", "hosts"), [(48, 1), (50, 1), (50, 4), (5, 4), (1, 2)])
def test_evaluation_covers_each_image_once(count, hosts):
    """Also where the images divide neither over batches nor over hosts."""
    config = dataclasses.replace(DIGITS, batch_size=16)
    split = numbered_split(count)
    batches = [
        list(batches_lib.eval_batches(split, config, process_index=i, process_count=hosts))
        for i in range(hosts)
    ]
    # Every host takes part in the same number of batches of the same size, or they would wait forever.
    assert {len(b) for b in batches} == {-(-count // 16)}
    everything = [b for host in batches for b in host]
    assert {len(b["label"]) for b in everything} == {16 // hosts}
    seen = np.concatenate([b["label"][b["weight"] > 0] for b in everything])
    assert sorted(seen) == list(range(count))


def test_to_device_keeps_order_and_count():
    import jax

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    batches = ({"label": np.full(2, i)} for i in range(7))
    moved = [int(b["label"][0]) for b in batches_lib.to_device(batches, sharding, ahead=3)]
    assert moved == list(range(7))


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"), [(3, 0, 9), (1, 0, 3), (60, 7, 7)], ids=["rounded", "one", "given"]
)
def test_number_of_steps(epochs, steps, expected):
    config = dataclasses.replace(DIGITS, batch_size=16, num_epochs=epochs, num_steps=steps)
    # 3 epochs of 45 images are 135 / 16 = 8.4 steps, one is 45 / 16 = 2.8.
    assert batches_lib.num_train_steps(config, 45) == expected


def test_digits_split_holds_out_a_quarter_of_each_class():
    train, test = (sets.open_split(DIGITS, train=t) for t in (True, False))
    assert (train.num_examples, test.num_examples) == (1797 - 450, 450)
    together = np.concatenate([train.images, test.images]).reshape(1797, -1)
    from sklearn.datasets import load_digits

    everything = load_digits().data * 15
    np.testing.assert_array_equal(np.sort(together, axis=0), np.sort(everything, axis=0))
    share = np.bincount(test.labels) / np.bincount(np.concatenate([train.labels, test.labels]))
    assert (abs(share - 0.25) < 0.01).all()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dataset": "digitz"}, ["config.dataset='digitz'", "'digits'"]),
        (
            {"dataset": "cifar100", "data_dir": "nowhere"},
            ["config.dataset='cifar100'", "nowhere", "ftbnn_jax.data.prepare cifar100"],
        ),
        ({"train_split": "trian"}, ["config.train_split='trian'", "train, test"]),
        ({"num_classes": 9}, ["config.num_classes=9", "digits has 10"]),
        ({"pixel_mean": (1.0, 2.0, 3.0)}, ["config.pixel_mean", "1 channel"]),
    ],
)
def test_mistakes_name_field_and_value(fields, words):
    with pytest.raises(UserError) as error:
        sets.open_split(dataclasses.replace(DIGITS, **fields), train=True)
    for word in words:
        assert word in str(error.value)


REAL = [("mnist", (28, 28, 1), 60000, 10000), ("cifar10", (32, 32, 3), 50000, 10000)]


@pytest.mark.parametrize(("name", "shape", "train", "test"), REAL)
def test_real_records_are_read_at_any_index(tfds_data_dir, name, shape, train, test):
    """Records found through their headers are those that TFDS reads one after the other."""
    config = dataclasses.replace(
        DIGITS,
        dataset=name,
        data_dir=str(tfds_data_dir),
        augment="resized_crop",
        image_size=24,
        train_split="train[100:120]",
    )
    split = sets.open_split(config, train=True)
    assert split.num_examples == 20
    assert sets.open_split(config, train=False).num_examples == test
    assert (
        sets.open_split(dataclasses.replace(config, train_split="train"), train=True).num_examples
        == train
    )
    expected = list(
        tfds.as_numpy(tfds.load(name, data_dir=str(tfds_data_dir), split=config.train_split))
    )
    features = tfds.builder(name, data_dir=str(tfds_data_dir)).info.features
    for i in (19, 0, 7):
        example = features.deserialize_example(split.read(i))
        np.testing.assert_array_equal(example["image"].numpy(), expected[i]["image"])
        assert int(example["label"]) == expected[i]["label"]
    (batch,) = train_batches(split, config, 0, 1)
    assert batch["image"].shape == (48, 24, 24, shape[-1])
    assert batch["image"].dtype == np.uint8
    indices = batches_lib.Order(20, config.seed).indices(np.arange(48))
    np.testing.assert_array_equal(batch["label"], [expected[i]["label"] for i in indices])


def test_real_images_in_memory(tfds_data_dir):
    config = dataclasses.replace(
        DIGITS, dataset="mnist", data_dir=str(tfds_data_dir), eval_split="test[:64]"
    )
    split = sets.open_split(config, train=False)
    assert split.images.shape == (64, 28, 28, 1)
    # The first test images of this MNIST are digits in white on black: dark on the whole, with a stroke.
    assert 10 < split.images.mean() < 60
    assert (split.images.max((1, 2, 3)) > 200).all()


def test_center_crop_of_real_images(tfds_data_dir):
    """Evaluation sees the central 224/256 of the shorter side: of MNIST's 28 pixels 24.5, so 24."""
    config = dataclasses.replace(
        DIGITS,
        dataset="mnist",
        data_dir=str(tfds_data_dir),
        eval_split="test[:5]",
        augment="resized_crop",
        image_size=24,
    )
    whole = sets.open_split(dataclasses.replace(config, augment="none"), train=False)
    (batch,) = batches_lib.eval_batches(sets.open_split(config, train=False), config)
    np.testing.assert_array_equal(batch["image"][:5], whole.images[:, 2:26, 2:26])


def test_truncated_record_file_is_named(tfds_data_dir, tmp_path):
    source = tfds_data_dir / "mnist"
    (version,) = source.iterdir()
    target = tmp_path / "mnist" / version.name
    target.mkdir(parents=True)
    for file in version.iterdir():
        data = file.read_bytes()
        (target / file.name).write_bytes(
            data[: len(data) // 2] if "train.tfrecord" in file.name else data
        )
    config = dataclasses.replace(
        DIGITS, dataset="mnist", data_dir=str(tmp_path), augment="resized_crop", image_size=24
    )
    with pytest.raises(UserError, match=r"mnist-train\.tfrecord-00000-of-00001: truncated at record"):
        sets.open_split(config, train=True)
