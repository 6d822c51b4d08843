"""The packed runtime against the training graph: networks of every kind, and what verify must notice."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

import ftbnn_jax
from ftbnn_jax.deploy import export, pixels, verify
from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import passes
from ftbnn_jax.nn import architectures


def _small(**fields):
    return architectures.small((1, 2), 12, **fields)


# What, spec, image size, compute dtype, forms of the binary convolutions.
_NETWORKS = {
    "fprelu": (_small(), 9, "float32", "ternary and ternary"),
    "relu": (_small(activation="relu"), 8, "float32", "ternary and and"),
    "relu stem": (_small(stem_activation="relu"), 8, "float32", "and and ternary"),
    "prelu": (
        _small(activation="prelu", stage_end_activation="prelu"),
        8,
        "float32",
        "ternary ternary ternary",
    ),
    "none": (
        _small(activation="none", stage_end_activation="none"),
        7,
        "float32",
        "ternary ternary ternary",
    ),
    "two-valued": (_small(sign="two_valued"), 9, "float32", "xnor and xnor"),
    "two-valued groups": (_small(sign="two_valued", groups=5), 10, "float32", "xnor and xnor"),
    "uneven groups": (_small(groups=5), 9, "float32", "ternary and ternary"),
    "duplicate": (_small(downsample="duplicate", groups=1), 11, "float32", "ternary and ternary"),
    "derived": (networks.DERIVED, 37, "float32", "ternary ternary ternary and"),
    "baseline": (networks.BASELINE, 33, "float32", "ternary ternary and"),
    "scaled": (_small(scaling="mean_abs", groups=5), 9, "float32", "ternary and ternary"),
    "learnt scaling": (_small(scaling="xnor_net++", groups=5), 9, "float32", "ternary and ternary"),
    "scaled by the input": (_small(scaling="xnor_net", groups=5), 9, "float32", "ternary and ternary"),
    "gated": (_small(scaling="real_to_bin"), 9, "float32", "ternary and ternary"),
    "gated, duplicate": (
        _small(scaling="real_to_bin", downsample="duplicate"),
        9,
        "float32",
        "ternary and ternary",
    ),
    "positions": (_small(head="flatten"), 9, "float32", "ternary and ternary"),
    "float16 signs": (_small(), 8, "float16", "ternary and ternary"),
}


def _batch(size, count=3):
    # The last image is a repeated one that only fills up the batch.
    weight = np.ones(count)
    weight[-1] = 0
    return {"image": networks.images(size, count), "weight": weight}


def _verified(config, variables, artifact, batches):
    """What verification of a config's network finds, beside what it prints and returns."""
    net = runtime_lib.Runtime(artifact)
    images = pixels.Pixels(net.pixels).checked(batches)
    return verify.verify(export.network(config, config.compute_dtype), variables, net, images)


@pytest.mark.parametrize("name", _NETWORKS)
def test_no_integer_differs(name):
    spec, size, dtype, forms = _NETWORKS[name]
    config, variables, artifact = networks.build(spec, size, compute_dtype=dtype)
    result = _verified(config, variables, artifact, [_batch(size)])
    assert [layer.form for layer in result.layers] == forms.split()
    assert all(layer.compared > 0 for layer in result.layers)
    assert result.differing == 0
    assert result.images == result.agreeing == 2
    assert result.not_finite == 0
    # With float32 everywhere the two are the same arithmetic in the same order, up to the classifier.
    if dtype == "float32":
        assert 0 < result.logit_share <= 1
        assert result.logit_error <= 1e-4
    else:
        assert result.logit_error <= 0.05


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_of_which_logits_cancel_are_no_failure(classes, tmp_path):
    """Where the classes' weights nearly agree, 16 bits are much of what tells them apart."""
    config, variables, _ = networks.build(_small(), 8, classes=classes)
    head = variables["params"]["head"]
    head["kernel"] = head["kernel"] * 1e-3 + head["kernel"][:, :1] - head["kernel"].mean(0)
    head["bias"] = -head["bias"] * 0
    experiment = {"channels": 3, "class_names": []}
    artifact = export.to_artifact(config, variables, experiment, step=1)
    path = str(tmp_path / "model.safetensors")
    artifact.save(path)
    assert verify.run(path, config, variables, [_batch(8)]) == 0


def test_the_classifiers_weights_are_rounded_to_the_nearest_step_of_their_class():
    """Two features and two classes, by hand: steps of 1/32767 and 4/32767, the largest weights."""
    kernel = np.float32([[1, 4], [0.50001, 0.5]])
    multiples, scale = passes.quantize(kernel)
    assert multiples.dtype == np.int16
    np.testing.assert_allclose(scale, np.array([[1, 4]]) / 32767, rtol=1e-7)
    np.testing.assert_array_equal(multiples[0], 32767)
    np.testing.assert_array_equal(multiples[1], np.rint(np.array([0.50001, 0.125]) * 32767))
    turned, scales = passes.quantize(kernel.T, axis=1)
    np.testing.assert_array_equal(turned.T * scales.T, multiples * scale)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_bound_on_logits_is_that_of_the_rounded_weights(transposed):
    """By hand: what 16 bits round of each weight, times what it is multiplied with, and rounding."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((7, 3)).astype(np.float32) * np.float32([1, 1e-3, 40])
    variables = {"kernel": kernel.T if transposed else kernel, "bias": np.float32([0, 3, -2])}

    def function(variables, images):
        axes = ((1,), (1 if transposed else 0,)), ((), ())
        return jax.lax.dot_general(images, variables["kernel"], axes) + variables["bias"]

    images = rng.standard_normal((5, 7)).astype(np.float32)
    artifact = ftbnn_jax.pack(function, variables, images)
    (name,) = (n for n, tensor in artifact.graph.tensors.items() if tensor.dtype == np.int16)
    multiples = artifact.graph.tensors[name]
    result = ftbnn_jax.verify(function, variables, artifact, [images])
    assert 0 < result.logit_share <= 1

    step = np.abs(kernel).max(axis=0) / 32767
    rounded = np.abs(np.rint(kernel / step.astype(np.float32)) * step.astype(np.float32) - kernel)
    assert (rounded <= 0.5 * step * (1 + 1e-3)).all()
    largest = np.abs(function(variables, images)).max(axis=1, keepdims=True)
    bound = np.abs(images).astype(np.float64) @ rounded + verify.ROUNDING * largest
    # As many steps more in one weight as make one result twice its bound too large.
    feature, of_class = 2, 1
    allowed = (bound[:, of_class] / np.abs(images[:, feature])).min()
    steps = round(2 * allowed / step[of_class])
    changed = multiples.copy()
    changed[(of_class, feature) if transposed else (feature, of_class)] -= steps
    wrong = _with_tensors(artifact, **{name: changed})
    off = np.abs(images[:, feature]) * step[of_class] * steps
    expected = (off / bound[:, of_class]).max()
    result = ftbnn_jax.verify(function, variables, wrong, [images])
    # Beside that, the result is off by what its own rounding makes.
    assert result.logit_share == pytest.approx(expected, abs=1)
    assert result.logit_share > 1


def test_a_network_without_binary_blocks_is_refused():
    spec = dataclasses.replace(architectures.resnet18(), blocks=(1,), width=4, stem_features=4)
    with pytest.raises(UserError, match=r"config\.model\.block='real': nothing to pack"):
        networks.build(spec, 8)


@pytest.mark.parametrize("field", ["binary_weights", "binary_activations"])
def test_a_network_that_is_not_binary_yet_is_refused(field):
    with pytest.raises(UserError, match=rf"config\.model\.{field}=False: nothing to pack"):
        networks.build(_small(**{field: False}), 8)


def test_training_in_bfloat16_reaches_the_same_integers():
    config, variables, artifact = networks.build(_small(), 8, compute_dtype="bfloat16")
    result = _verified(config, variables, artifact, [_batch(8)])
    assert result.differing == 0


@pytest.fixture
def exported(tmp_path):
    config, variables, artifact = networks.build(_small(), 8)
    path = str(tmp_path / "model.safetensors")
    artifact.save(path)
    return path, config, variables, artifact


def _with_tensors(artifact, **changed):
    graph = artifact.graph
    assert graph.tensors.keys() >= changed.keys()
    graph = dataclasses.replace(graph, tensors={**graph.tensors, **changed})
    return dataclasses.replace(artifact, graph=graph)


def _flipped(artifact, name, bit=0):
    words = artifact.graph.tensors[name].copy()
    words[bit // 32] ^= np.uint32(1 << bit % 32)
    return _with_tensors(artifact, **{name: words})


def test_one_flipped_weight_bit_is_refused_by_its_checksum(exported):
    path, config, variables, artifact = exported
    with open(path, "rb") as file:
        content = bytearray(file.read())
    bits = artifact.graph.tensors["block2_1/conv/bits"].tobytes()
    position = bytes(content).index(bits)
    content[position] ^= 1
    with open(path, "wb") as file:
        file.write(content)
    with pytest.raises(UserError, match="SHA-256 of tensor 'block2_1/conv/bits' does not match"):
        verify.run(path, config, variables, [_batch(8)])


def test_one_flipped_weight_bit_under_a_right_checksum_fails_and_is_located(exported, capsys):
    path, config, variables, artifact = exported
    assert verify.run(path, config, variables, [_batch(8)]) == 0
    _flipped(artifact, "block2_1/conv/bits").save(path)
    assert verify.run(path, config, variables, [_batch(8)]) == 1
    assert "block2_1/conv: " in capsys.readouterr().err
    result = _verified(config, variables, runtime_lib.Runtime.load(path).artifact, [_batch(8)])
    assert [layer.name for layer in result.layers if layer.differing] == ["block2_1/conv"]


def test_a_classifier_of_other_weights_fails(exported, capsys):
    path, config, variables, artifact = exported
    kernel = artifact.graph.tensors["head/kernel/int16"].copy()
    kernel[:, 0] += 30
    _with_tensors(artifact, **{"head/kernel/int16": kernel}).save(path)
    assert verify.run(path, config, variables, [_batch(8)]) == 1
    assert "times what the classifier's 16 bits explain" in capsys.readouterr().err
    # In float16 the training graph's own rounding is larger.
    config = dataclasses.replace(config, compute_dtype="float16")
    assert verify.run(path, config, variables, [_batch(8)]) == 0


@pytest.mark.parametrize("name", ["stem/conv/kernel", "block1_1/bn/mul_constant", "head/bias"])
def test_other_real_numbers_anywhere_in_the_network_fail(exported, name):
    path, config, variables, artifact = exported
    tensor = artifact.graph.tensors[name].copy()
    tensor[..., 1] *= 1.01
    _with_tensors(artifact, **{name: tensor}).save(path)
    assert verify.run(path, config, variables, [_batch(8)]) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_that_are_not_finite_fail(exported, capsys, dtype):
    path, config, variables, _ = exported
    head = variables["params"]["head"]
    broken = {**head, "bias": np.where(np.arange(5) == 2, np.nan, head["bias"])}
    variables = {**variables, "params": {**variables["params"], "head": broken}}
    config = dataclasses.replace(config, compute_dtype=dtype)
    assert verify.run(path, config, variables, [_batch(8)], as_json=True) == 1
    output, errors = capsys.readouterr()
    assert "logits are not finite on 2 of 2 images" in errors
    json.loads(output, parse_constant=pytest.fail)


def test_pixels_are_compared_from_the_stored_images_on(exported, capsys):
    path, config, variables, artifact = exported
    rng = np.random.default_rng(3)
    decoded = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((8, 8), (30, 50), (9, 7))]
    batch = {"image": artifact.preprocessing.stack(decoded), "decoded": decoded, "weight": np.ones(3)}
    assert verify.run(path, config, variables, [batch]) == 0
    assert "0 of 576 pixel values differ from evaluation's" in capsys.readouterr().out
    batch["image"][1, 4, 4, 0] ^= 1
    assert verify.run(path, config, variables, [batch]) == 1
    assert "1 of 576 pixel values" in capsys.readouterr().err


def test_the_json_report_holds_what_the_table_shows(exported):
    _, config, variables, artifact = exported
    wrong = _flipped(artifact, "block1_1/conv/bits")
    result = _verified(config, variables, wrong, [_batch(8)])
    report = result.to_dict()
    assert report["differing"] == result.differing > 0
    assert report["images"] == 2
    names = [f"{block}/conv" for block in ("block1_1", "block2_1", "block2_2")]
    assert [layer["name"] for layer in report["layers"]] == names
    assert report["layers"][0].keys() == {"name", "form", "compared", "differing", "inputs", "zeros"}


def _with_model(config, **fields):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **fields))


def test_an_artifact_of_another_network_is_refused(exported):
    path, config, variables, _ = exported
    for other in (
        dataclasses.replace(config, num_classes=6),
        _with_model(config, batch_norm_epsilon=1e-3),
        _with_model(config, stage_end_activation="prelu"),
    ):
        with pytest.raises(UserError, match="another network"):
            verify.run(path, other, variables, [_batch(8)])
    other = dataclasses.replace(config, pixel_mean=(121.0,))
    with pytest.raises(UserError, match=r"packed for .*mean=\(120\.0,\).* says .*mean=\(121\.0,\)"):
        verify.run(path, other, variables, [_batch(8)])


def test_a_net_that_would_be_trained_otherwise_is_the_same_network(exported):
    path, config, variables, _ = exported
    other = _with_model(config, batch_norm_momentum=0.5, ste_bound=0.5, weight_gradient="evolving")
    assert verify.run(path, other, variables, [_batch(8)]) == 0


def test_predictions_for_a_batch_of_any_size_are_the_same(exported):
    runtime = runtime_lib.Runtime.load(exported[0])
    images = networks.images(8, 5)
    logits = np.asarray(runtime.logits(images))
    predicted = runtime.predict(images)
    np.testing.assert_array_equal(predicted, logits.argmax(-1))
    for count in (1, 2, 5):
        np.testing.assert_array_equal(runtime.predict(images[:count]), predicted[:count])
    assert runtime.predict(images[:0]).shape == (0,)
    # In a program of 64-bit types as well.
    with jax.enable_x64(True):
        again = runtime_lib.Runtime.load(exported[0])
        np.testing.assert_array_equal(np.asarray(again.logits(images)), logits)
        classes = again.predict(images)
    np.testing.assert_array_equal(classes, predicted)
    assert classes.dtype == predicted.dtype == np.int32


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((1, 8, 8, 1), np.uint8),
        np.zeros((70, 8, 8, 1), np.uint8),
        np.zeros((1, 8, 8, 3), np.float32),
        np.zeros((1, 0, 8, 3), np.uint8),
        np.zeros(0, np.uint8),
        [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)],
        [np.zeros((1, 8, 8, 3), np.uint8)],
        [[[1, 2, 3]]],
        [["photo.png"]],
        None,
        3,
    ],
    ids=str,
)
def test_images_of_a_wrong_kind_are_a_users_mistake(exported, images):
    net = runtime_lib.Runtime.load(exported[0])
    for method in (net.predict, net.logits, net.pixels):
        with pytest.raises(
            UserError, match=r"a list of these, or uint8 .N, H, W, 3. expected, found"
        ) as e:
            method(images)
        # What the user gave is named, not a slice of it, and in one line.
        assert str(e.value).isprintable()
        if isinstance(images, np.ndarray):
            assert str(list(images.shape)) in str(e.value)


def test_images_of_any_sizes_run_in_one_program_a_batch(monkeypatch):
    """Preprocessing is outside: 20 sizes, and nothing is compiled but for the numbers of images."""
    config, _, artifact = networks.build(_small(), 8, augment="resized_crop")
    net = runtime_lib.Runtime(artifact)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (30 + i, 50 + 3 * i, 3), np.uint8) for i in range(20)]
    compiled = []
    forward = net.forward
    monkeypatch.setattr(net, "forward", lambda x: compiled.append(x.shape) or forward(x))
    monkeypatch.setattr(runtime_lib, "_SLICE_PIXELS", 8 * 64)
    predicted = net.predict(images)
    assert compiled == [(8, 8, 8, 3), (8, 8, 8, 3), (4, 8, 8, 3)]
    pixels = np.stack([config.preprocessing(3).pixels(image) for image in images])
    np.testing.assert_array_equal(net.pixels(images), pixels)
    np.testing.assert_array_equal(predicted, np.asarray(forward(pixels)).argmax(-1))
    np.testing.assert_array_equal(np.asarray(net.logits(images)), np.asarray(forward(pixels)))
    assert net.predict([]).shape == (0,) and net.logits([]).shape == (0, 5)


@pytest.mark.parametrize("sign", ["ternary", "xnor"])
def test_the_form_is_proved_from_the_program_alone(sign):
    values = {"ternary": "three_valued", "xnor": "two_valued"}
    spec = dataclasses.replace(architectures.derived(18, 5), width=20, sign=values[sign])
    _, _, artifact = networks.build(spec, 32)
    forms = [node.attributes["form"] for node in artifact.graph.binary_products()]
    # The bridge, then four blocks a stage: only what follows a stage's ReLU is known to be 0 or 1.
    assert forms == [sign, *[sign] * 4, *(["and"] + [sign] * 3) * 3]


def test_jax_export_of_the_runtime_runs_any_batch(exported, tmp_path):
    runtime = runtime_lib.Runtime.load(exported[0])
    path = tmp_path / "model.stablehlo"
    path.write_bytes(runtime.to_stablehlo())
    loaded = jax.export.deserialize(path.read_bytes())
    for count in (1, 4):
        images = networks.images(8, count)
        # Its weights are constants, folded by the compiler, so that the last bit can round differently.
        expected = np.asarray(runtime.logits(images))
        np.testing.assert_allclose(loaded.call(images), expected, atol=1e-5 * np.abs(expected).max())


# Plain JAX, without one import of this package.


def _rows(images, kernel):
    return jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _plain(sign, scale=1.0):
    """A convolution and a matrix product of signs, as anybody writes them."""

    def function(variables, images):
        x = _rows(sign(images), scale * jnp.where(variables["conv"] > 0, 1.0, -1.0))
        x = sign(x * variables["scale"] - 0.5).reshape(-1, 6 * 6 * 9)
        return x @ jnp.where(variables["dense"] > 0, 1.0, -1.0)

    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 5, 9), "scale": (9,), "dense": (6 * 6 * 9, 4)}
    return function, {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


# Spellings of a sign, and what each makes of what is nearly or exactly 0: the program's own signs count.
_SIGNS = {
    "sign": jnp.sign,
    "at least 0": lambda x: jnp.where(x >= 0, 1.0, -1.0),
    "above 0": lambda x: jnp.where(x > 0, 1.0, -1.0),
    "above tiny": lambda x: jnp.where(x >= np.finfo(np.float32).tiny, 1.0, -1.0),
    "bits": lambda x: (x > 0).astype(jnp.float32),
    "estimator": lambda x: x + jax.lax.stop_gradient(jnp.sign(x) - x),
}


def _plain_images(*planted):
    """Images of which a fifth of the numbers are planted ones."""
    rng = np.random.default_rng(1)
    images = rng.standard_normal((4, 6, 6, 5)).astype(np.float32)
    return np.where(
        rng.random(images.shape) < 0.2, rng.choice(np.float32(planted), images.shape), images
    )


@pytest.mark.parametrize("name", _SIGNS)
def test_zeros_of_both_signs_and_subnormal_numbers_are_what_the_program_makes_of_them(name):
    function, variables = _plain(_SIGNS[name])
    images = _plain_images(0.0, -0.0, 1e-40, -1e-40, 1e-38, -1e-38)
    artifact = ftbnn_jax.pack(function, variables, images, classifier_bits=32)
    result = ftbnn_jax.verify(function, variables, artifact, [images, images[:1]])
    assert (result.packed, result.differing, result.images) == (2, 0, 5)
    assert result.agreeing == 5


@pytest.mark.parametrize("name", _SIGNS)
@pytest.mark.parametrize("product", ["conv", "dense"])
def test_one_flipped_bit_is_found_in_a_network_of_plain_jax(name, product):
    function, variables = _plain(_SIGNS[name])
    images = _plain_images(0.0)
    artifact = ftbnn_jax.pack(function, variables, images)
    nodes = artifact.graph.binary_products()
    at = ["conv", "dense"].index(product)
    bit = 148
    wrong = _flipped(artifact, nodes[at].inputs[1], bit)
    result = ftbnn_jax.verify(function, variables, wrong, [images])
    assert [layer.differing > 0 for layer in result.layers] == [i == at for i in range(2)]
    # One weight of one output, where its input is not 0 or padding.
    layer = result.layers[at]
    assert layer.differing <= layer.compared / variables[product].shape[-1]


def test_a_number_that_is_none_fails_verification():
    """The sign of NaN is NaN to the program, and a bit to what is packed."""
    function, variables = _plain(jnp.sign)
    images = _plain_images(0.0)
    artifact = ftbnn_jax.pack(function, variables, images)
    images[0, 3, 3, 2] = np.nan
    result = ftbnn_jax.verify(function, variables, artifact, [images])
    # 3 x 3 windows and 9 outputs; then all of an image's.
    assert [layer.differing for layer in result.layers] == [9 * 9, 4]
    assert result.not_finite == 1


def test_scaled_kernels_are_compared_as_integers_and_end_to_end():
    function, variables = _plain(_SIGNS["above 0"], scale=0.3)
    images = _plain_images(0.0)
    assert len(ftbnn_jax.pack(function, variables, images).report.packed) == 1
    artifact = ftbnn_jax.pack(function, variables, images, scaled_kernels=True)
    assert len(artifact.report.packed) == 2
    result = ftbnn_jax.verify(function, variables, artifact, [images])
    assert (result.packed, result.differing, result.agreeing) == (2, 0, 4)

    words, scale = artifact.graph.binary_products()[0].inputs[1], "conv/scale"
    wrong = _flipped(artifact, words, 7)
    result = ftbnn_jax.verify(function, variables, wrong, [images])
    assert [layer.differing > 0 for layer in result.layers] == [True, False]
    # A sign does not mind a scale a little larger; one of the other sign turns it.
    (scale,) = (n for n, t in artifact.graph.tensors.items() if n.endswith("/scale"))
    wrong = _with_tensors(artifact, **{scale: -artifact.graph.tensors[scale]})
    result = ftbnn_jax.verify(function, variables, wrong, [images])
    assert result.differing == 0 and result.logit_share > 1


def test_another_function_than_was_packed_is_refused():
    function, variables = _plain(jnp.sign)
    images = _plain_images(0.0)
    artifact = ftbnn_jax.pack(function, variables, images)
    for other in (
        lambda v, x: function(v, jnp.abs(x)),
        lambda v, x: function({**v, "conv": v["conv"][:1]}, x),
        lambda v, x: _rows(jnp.sign(x), v["conv"]).sum((1, 2)),
        lambda v, x: jnp.sign(function(v, x)) @ jnp.ones((4, 4)),
    ):
        with pytest.raises(UserError, match="another network"):
            ftbnn_jax.verify(other, variables, artifact, [images])


@pytest.mark.parametrize("bits", [0, 8, 15, 17, "16", None])
def test_a_classifier_of_other_bits_is_refused(bits):
    function, variables = _plain(jnp.sign)
    with pytest.raises(UserError, match=r"classifier_bits=.*: must be 16 or 32"):
        ftbnn_jax.pack(function, variables, _plain_images(0.0), classifier_bits=bits)
