"""The compiled steps: the same on one device and on several, and what they exchange."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from ftbnn_jax import config as config_lib
from ftbnn_jax import networks
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures, blocks, recording, resnet
from ftbnn_jax.ops import image
from ftbnn_jax.ops.conv import convolution
from ftbnn_jax.train import optimizer, state
from ftbnn_jax.train import step as step_lib

CONFIG = config_lib.TrainConfig(
    architectures.small((1, 1), 10, groups=3, downsample="duplicate"),
    image_size=8,
    num_classes=10,
    batch_size=16,
    log_every=2,
    label_smoothing=0.1,
)


def mesh_of(devices: int) -> jax.sharding.Mesh:
    return jax.make_mesh(
        (devices,), ("data",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,)
    )


def batch(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    return {
        "image": rng.integers(0, 256, (CONFIG.batch_size, 8, 8, 3), np.uint8),
        "label": rng.integers(0, 10, CONFIG.batch_size, np.int32),
    }


def run(config, mesh, steps, first_state=None):
    tx = optimizer.make(config, 100, networks.weights(config, 3))
    train_step = step_lib.make_train_step(config, tx, mesh)
    current = (
        first_state
        or jax.jit(lambda: state.init(config, 3, tx), out_shardings=step_lib.replicated(mesh))()
    )
    sums = []
    for number in range(steps):
        current, out = train_step(current, jax.device_put(batch(number), step_lib.batch_sharding(mesh)))
        sums.append(jax.device_get(out))
    return current, sums


def test_several_devices_compute_what_one_does():
    """Batch statistics would differ if each device used its own."""
    one, sums_one = run(CONFIG, mesh_of(1), 2)
    four, sums_four = run(CONFIG, mesh_of(4), 2)
    assert len(four.params["head"]["kernel"].sharding.device_set) == 4
    np.testing.assert_allclose(sums_one[0]["loss"], sums_four[0]["loss"], rtol=1e-5)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(one.collections),
        jax.tree.leaves(four.collections),
        strict=True,
    ):
        # After two steps: rounding has flipped a few signs at the most.
        np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02, err_msg=str(path))


@pytest.mark.parametrize("downsample", ["conv", "duplicate"])
def test_devices_exchange_no_activations(downsample):
    """A grouped convolution that XLA cannot split makes it gather the whole batch everywhere."""
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, downsample=downsample))
    mesh = mesh_of(4)
    tx = optimizer.make(config, 100, networks.weights(config, 3))
    abstract = jax.eval_shape(lambda: state.init(config, 3, tx))
    compiled = step_lib.make_train_step(config, tx, mesh).lower(abstract, batch(0)).compile()
    text = compiled.as_text()
    assert "all-reduce" in text  # Of gradients and statistics: the text is the partitioned program.
    assert "all-gather" not in text
    assert "all-to-all" not in text


def test_sums_restart_after_they_were_logged():
    _, sums = run(CONFIG, mesh_of(1), 5)
    assert [int(s["count"]) for s in sums] == [16, 32, 16, 32, 16]
    assert sums[1]["loss"] > sums[0]["loss"] > 0
    assert sums[2]["loss"] < sums[1]["loss"]


def test_first_nonfinite_step_is_remembered():
    mesh = mesh_of(1)
    good, _ = run(CONFIG, mesh, 1)
    params = jax.tree.map(lambda x: x, good.params)
    params["head"]["bias"] = params["head"]["bias"] * np.nan
    _, sums = run(CONFIG, mesh, 2, first_state=good.replace(params=params))
    assert [int(s["nonfinite_step"]) for s in sums] == [2, 2]


def test_label_smoothing_and_dtype_change_the_loss_as_they_should():
    losses = {}
    for smoothing, dtype in [(0.0, "float32"), (0.1, "float32"), (0.0, "bfloat16"), (0.0, "float16")]:
        config = dataclasses.replace(CONFIG, label_smoothing=smoothing, compute_dtype=dtype)
        losses[smoothing, dtype] = float(run(config, mesh_of(1), 1)[1][0]["loss"]) / 16
    assert losses[0.1, "float32"] != losses[0.0, "float32"]
    for dtype in ("bfloat16", "float16"):
        np.testing.assert_allclose(losses[0.0, dtype], losses[0.0, "float32"], rtol=0.05)


def test_evaluation_counts_weighted_images_only():
    mesh = mesh_of(4)
    current, _ = run(CONFIG, mesh_of(4), 1)
    eval_step = step_lib.make_eval_step(dataclasses.replace(CONFIG, remat="stages"), mesh)
    data = batch(7)
    model, results = resnet.make(CONFIG.model, 10, "float32"), {}
    x = image.standardize(data["image"], CONFIG.pixel_mean, CONFIG.pixel_std)
    calls = recording.calls(model, jax.device_get(current.variables), x, blocks.BinaryConv)
    zeros = {
        f"{block}/conv": np.mean(np.asarray(read) == 0, (1, 2, 3)) for block, (read, _) in calls.items()
    }
    for kept in (16, 11):
        weight = (np.arange(16) < kept).astype(np.float32)
        inputs = jax.device_put({**data, "weight": weight}, step_lib.batch_sharding(mesh))
        results[kept], predictions = jax.device_get(eval_step(current.variables, inputs))
        right = (predictions == data["label"]) * weight
        assert results[kept]["correct"] == right.sum()
        # A ReLU stands before the second block alone.
        expected = {layer: share @ weight for layer, share in zeros.items()}
        assert results[kept]["zero_inputs"] == pytest.approx(expected, rel=0.02)
        assert expected["block1_1/conv"] == 0 < expected["block2_1/conv"] < kept
    assert (results[16]["count"], results[11]["count"]) == (16, 11)
    assert results[11]["loss"] < results[16]["loss"]
    assert results[16]["correct"] <= results[16]["correct_top5"] <= 16


@pytest.mark.parametrize(("batch_size", "fitting"), [(18, "16 or 20"), (3, "4")])
def test_batch_must_divide_over_the_devices(batch_size, fitting):
    with pytest.raises(UserError, match=rf"batch_size={batch_size}: .* 4 devices; {fitting} would"):
        step_lib.make_mesh(dataclasses.replace(CONFIG, batch_size=batch_size))


def test_per_device_statistics_are_those_of_each_share():
    """The running statistics are the mean of what every share gives alone."""
    config = dataclasses.replace(CONFIG, batch_norm="per_device")
    four, sums = run(config, mesh_of(4), 1)
    data = batch(0)
    alone = []
    tx = optimizer.make(CONFIG, 100, networks.weights(CONFIG, 3))
    for device in range(4):
        part = {k: v[4 * device : 4 * device + 4] for k, v in data.items()}
        first = jax.jit(lambda: state.init(CONFIG, 3, tx))()
        part_config = dataclasses.replace(CONFIG, batch_size=4)
        step = step_lib.make_train_step(part_config, tx, mesh_of(1))
        alone.append(step(first, part)[0].collections)
    expected = jax.tree.map(lambda *parts: np.mean(np.stack(parts), axis=0), *alone)
    # Rounding flips a sign now and then further on than the stem.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        jax.device_get(four.collections["batch_stats"]["stem"]),
        expected["batch_stats"]["stem"],
    )
    of_the_batch, _ = run(CONFIG, mesh_of(4), 1)
    stem = [
        jax.device_get(s.collections["batch_stats"]["stem"]["bn"]["var"]) for s in (four, of_the_batch)
    ]
    assert not np.allclose(*stem, rtol=1e-4)
    assert int(sums[0]["count"]) == 16


def test_gradients_of_shares_are_averaged_once():
    """Equal shares: then what one device computes from its share is the gradient of the whole batch."""
    config = dataclasses.replace(CONFIG, batch_norm="per_device", weight_decay=0.0)
    share = {k: v[:4] for k, v in batch(0).items()}
    repeated = {k: np.concatenate([v] * 4) for k, v in share.items()}
    tx = optax.sgd(1.0)
    changes = []
    for mesh, data, size in ((mesh_of(4), repeated, 16), (mesh_of(1), share, 4)):
        sized = dataclasses.replace(config, batch_size=size)
        first = jax.jit(lambda: state.init(config, 3, tx), out_shardings=step_lib.replicated(mesh))()
        before = jax.device_get(first.params)
        after, sums = step_lib.make_train_step(sized, tx, mesh)(first, data)
        changes.append(jax.tree.map(np.subtract, jax.device_get(after.params), before))
        norm = np.sqrt(
            sum(np.square(leaf, dtype=np.float64).sum() for leaf in jax.tree.leaves(changes[-1]))
        )
        np.testing.assert_allclose(sums["gradient_norm"], norm, rtol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *changes)


@pytest.mark.parametrize("batch_norm", ["global", "per_device"])
def test_accumulation_averages_its_parts(batch_norm):
    """Parts that are all alike give what one of them gives."""
    config = dataclasses.replace(
        CONFIG, batch_norm=batch_norm, accumulation_steps=2, weight_decay=0.0, batch_size=16
    )
    tx = optax.sgd(1.0)
    mesh = mesh_of(4)
    # Every device holds its share of both parts, one after the other.
    part = {k: v[:8].reshape(4, 1, 2, *v.shape[1:]) for k, v in batch(0).items()}
    whole = {k: np.tile(v, (1, 2) + (1,) * (v.ndim - 2)) for k, v in part.items()}
    flat = [{k: v.reshape(-1, *v.shape[3:]) for k, v in p.items()} for p in (whole, part)]
    results = []
    for data, parts in zip(flat, (2, 1), strict=True):
        sized = dataclasses.replace(config, accumulation_steps=parts, batch_size=len(data["label"]))
        first = jax.jit(lambda: state.init(config, 3, tx), out_shardings=step_lib.replicated(mesh))()
        after, sums = step_lib.make_train_step(sized, tx, mesh)(first, data)
        results.append((jax.device_get(after.params), jax.device_get(sums)))
    (params, sums), (expected, once) = results
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), params, expected)
    assert (int(sums["count"]), int(sums["correct"])) == (16, 2 * int(once["correct"]))
    np.testing.assert_allclose(sums["loss"], 2 * once["loss"], rtol=1e-5)


def test_accumulation_exchanges_no_activations():
    config = dataclasses.replace(CONFIG, accumulation_steps=2)
    mesh = mesh_of(4)
    tx = optimizer.make(config, 100, networks.weights(config, 3))
    abstract = jax.eval_shape(lambda: state.init(config, 3, tx))
    text = step_lib.make_train_step(config, tx, mesh).lower(abstract, batch(0)).compile().as_text()
    assert "all-gather" not in text
    assert "all-to-all" not in text


def test_rematerialisation_keeps_less_and_computes_the_same():
    """The backward pass of stages of four blocks is handed what enters each stage, and little more.

    Counted before compilation, since XLA's compiler for the CPU merges what "stages" computes twice.
    """
    config = dataclasses.replace(CONFIG, model=architectures.small((4, 4), 4))
    kept = {remat: _kept_bytes(dataclasses.replace(config, remat=remat)) for remat in _REMATS}
    assert 0 < kept["stages"] < 0.3 * kept["none"]
    # 6 bytes of each output and input, where plain are 4 + 4 + 4 + 1: what batch norm and the activation
    # read, signs, and a mask.
    elements = 16 * (4 * 8 * 8 * 4 + 4 * 4 * 4 * 8)
    with convolution.signs_as_numbers():
        assert _kept_bytes(config) - kept["outputs"] == (13 - 6) * elements
    short = dataclasses.replace(config, model=architectures.small((1, 2), 4))
    sums = [run(dataclasses.replace(short, remat=r), mesh_of(1), 2)[1][-1] for r in _REMATS]
    for other in sums[1:]:
        np.testing.assert_allclose(other["loss"], sums[0]["loss"], rtol=1e-5)


_REMATS = ("none", "outputs", "stages")


def _kept_bytes(config):
    network = networks.make(config)
    images = jax.ShapeDtypeStruct((16, 8, 8, 3), np.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)

    def residuals(variables, images):
        def forward(params):
            return network.run({**variables, "params": params}, images, True)[:2]

        return jax.vjp(forward, variables["params"], has_aux=False)[1]

    leaves = jax.tree.leaves(jax.eval_shape(residuals, variables, images))
    return sum(
        leaf.size * leaf.dtype.itemsize for leaf in leaves if leaf.ndim == 4 and leaf.shape[0] == 16
    )


@pytest.mark.parametrize(("devices", "share"), [(8, 0.6), (1, 0.3)])
def test_keeping_outputs_saves_memory_on_a_cpu_too(monkeypatch, devices, share):
    """On one device, sums are kept in 16 bits; a batch over several is not taken apart for that."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    config = dataclasses.replace(
        CONFIG, model=architectures.small((10,), 8), batch_size=64, image_size=16
    )
    shapes = {
        "image": jax.ShapeDtypeStruct((64, 16, 16, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((64,), np.int32),
    }
    tx = optimizer.make(config, 100, networks.weights(config, 3))
    temporary = {}
    for remat in ("none", "outputs"):
        lean = dataclasses.replace(config, remat=remat)
        abstract = jax.eval_shape(lambda lean=lean: state.init(lean, 3, tx))
        compiled = step_lib.make_train_step(lean, tx, mesh_of(1)).lower(abstract, shapes).compile()
        temporary[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert temporary["outputs"] < share * temporary["none"]


def test_automatic_dtype_is_the_backends():
    config = dataclasses.replace(CONFIG, compute_dtype="auto")
    assert networks.make(config).module.compute_dtype == np.float32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "tpu")
        assert networks.make(config).module.compute_dtype == jax.numpy.bfloat16


def test_evolving_gradients_follow_the_step():
    """The first step is the same however long the training is, the second is not."""
    config = dataclasses.replace(CONFIG, model=architectures.small((1,), 8, weight_gradient="evolving"))
    tx, mesh = optax.sgd(1.0), mesh_of(1)
    with pytest.raises(ValueError, match="num_steps"):
        step_lib.make_train_step(config, tx, mesh)
    after = []
    for num_steps in (2, 10):
        current = jax.jit(lambda: state.init(config, 3, tx))()
        train_step = step_lib.make_train_step(config, tx, mesh, num_steps)
        for number in range(2):
            current, _ = train_step(current, batch(number))
            after.append(jax.device_get(current.params["block1_1"]["conv"]["kernel_0"]))
    np.testing.assert_array_equal(after[0], after[2])
    assert np.abs(after[1] - after[3]).max() > 0
