"""Real layers in integers: the emulation beside an independent sum, and C beside the emulation."""

import dataclasses

import c_programs
import networks
import numpy as np
import pytest

from ftbnn_jax.deploy.c import cost, export, generate, integer_layers, lowering, quantized, reference
from ftbnn_jax.deploy.c.options import Options
from ftbnn_jax.errors import UserError

c_programs.need_compiler()


def _layers(name, real_bits):
    """Returns the layers of a network whose inputs are quantised with 6 fraction bits."""
    artifact = c_programs.runtime(name).artifact
    network = lowering.lower(artifact, real_bits)
    count = sum(integer_layers.reads_values(network, n) for n in integer_layers.nodes(network))
    return quantized.lower(artifact, Options(real_bits=real_bits, input_bits=(6,) * count))


@pytest.mark.parametrize("name", ["baseline", "derived", "prelu"])
def test_a_stem_on_bytes_is_the_convolution_of_preprocessed_pixels_at_the_border_too(name):
    network = _layers(name, 8)
    layer = next(layer for layer in network.layers.values() if layer.reads == "bytes")
    images = networks.images(c_programs.NETWORKS[name][1], 1)
    sizes, (top, left) = layer.sizes, (layer.sizes["top"], layer.sizes["left"])
    x = (images[0].astype(np.float64) - 120) / 60
    size = x.shape[0] + 2 * max(sizes["kernel_height"], sizes["kernel_width"])
    padded = np.zeros((size, size, x.shape[2]))
    padded[top : top + x.shape[0], left : left + x.shape[1]] = x
    found = layer.with_bias(_byte_sums(layer, images)) * layer.scale.astype(np.float64)
    # Weights in the network's units: those of bytes have the slope 1 / 60 in them.
    weights = layer.weights * layer.scale.astype(np.float64) * 60
    for y, x0 in [(0, 0), (0, found.shape[2] - 1), (found.shape[1] // 2, 1), (found.shape[1] - 1, 0)]:
        rows = slice(y * sizes["stride_y"], y * sizes["stride_y"] + sizes["kernel_height"])
        columns = slice(x0 * sizes["stride_x"], x0 * sizes["stride_x"] + sizes["kernel_width"])
        expected = np.einsum("hwi,hwio->o", padded[rows, columns], weights)
        # The bias is rounded by half a unit of a sum, and the zero by 2**-17 of a pixel.
        np.testing.assert_allclose(found[0, y, x0], expected, atol=0.6 * layer.scale.max())


def _byte_sums(layer, images):
    """Returns the sums of bytes, with 0 as padding."""
    sizes = layer.sizes
    (top, bottom), (left, right) = layer.node.attributes["padding"]
    padded = np.pad(images.astype(np.int64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    height = (padded.shape[1] - sizes["kernel_height"]) // sizes["stride_y"] + 1
    width = (padded.shape[2] - sizes["kernel_width"]) // sizes["stride_x"] + 1
    sums = np.zeros((len(images), height, width, layer.weights.shape[3]), np.int64)
    for y in range(height):
        for x in range(width):
            top, left = y * sizes["stride_y"], x * sizes["stride_x"]
            part = padded[:, top : top + sizes["kernel_height"], left : left + sizes["kernel_width"]]
            sums[:, y, x] = np.einsum("nhwi,hwio->no", part, layer.weights)
    return sums


@pytest.mark.parametrize("real_bits", [8, 16])
def test_no_input_makes_a_sum_leave_int32_and_weights_have_their_bits(real_bits):
    for name in ("baseline", "derived"):
        for layer in _layers(name, real_bits).layers.values():
            heaviest = int(np.abs(layer.weights).sum((0, 1, 2)).max())
            assert heaviest * layer.largest + int(np.abs(layer.bias[0]).max()) < 2**31
            assert np.abs(layer.weights).max() < 2 ** (real_bits - 1)


def test_weights_of_each_output_use_all_of_8_bits_and_those_that_are_0_stay_so():
    kernel = np.zeros((3, 3, 2, 4))
    kernel[..., 0] = 1e-3
    kernel[..., 1] = -1e6
    kernel[1, 1, 0, 2] = 1e-42
    weights, scale = integer_layers._weights(kernel, 8, 255, float(np.finfo(np.float32).tiny))
    assert np.abs(weights[..., :2]).max((0, 1, 2)).tolist() == [127, 127]
    assert not weights[..., 2:].any()
    np.testing.assert_allclose(scale[:2], [1e-3 / 127, 1e6 / 127])


def test_weights_of_16_bits_give_way_to_the_room_that_sums_have():
    # 2**14 inputs of 2**10: 2**31 / (2**14 * 2**10) = 2**7 is the largest weight.
    weights, _ = integer_layers._weights(np.ones((1, 1, 2**14, 1)), 16, 2**10, 0.0)
    assert 2**6 <= weights.max() < 2**7


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("real_bits", [8, 16])
def test_a_program_gives_the_integers_of_its_emulation(tmp_path, fixed, real_bits):
    artifact = c_programs.runtime("baseline").artifact
    images = networks.images(artifact.image_size)
    options = reference.calibrated(artifact, Options(real_bits=real_bits), fixed, [images])
    expected = reference.Reference(artifact, options)
    vectors = expected.golden(images)
    folder = tmp_path / "c"
    export.write(folder, {n: t.encode() for n, t in generate.files(artifact, options).items()})
    assert export.read_options(folder) == options
    flags = ("-O1", "-Wconversion", *c_programs.SANITIZED[1:])
    result = c_programs.check(folder, vectors, flags)
    assert result["passed"]
    assert "real layers by" in result["kernels"]
    assert result["saturated"] == 0


def test_inputs_beyond_their_range_become_its_end_and_are_reported(tmp_path):
    artifact = c_programs.runtime("baseline").artifact
    images = networks.images(artifact.image_size)
    options = reference.calibrated(artifact, Options(real_bits=8), False, [images])
    options = dataclasses.replace(options, input_bits=tuple(b + 6 for b in options.input_bits))
    expected = reference.Reference(artifact, options)
    vectors = expected.golden(images)
    folder = tmp_path / "c"
    export.write(folder, {n: t.encode() for n, t in generate.files(artifact, options).items()})
    result = c_programs.check(folder, vectors)
    assert result["passed"]
    assert result["saturated"] == len(images)
    assert any(name.endswith(": input") for name in expected.losses.saturated)


def test_bits_of_another_network_are_refused():
    artifact = c_programs.runtime("baseline").artifact
    with pytest.raises(UserError, match=r"input_bits=\(1, 2, 3\): must be 2 numbers"):
        quantized.lower(artifact, Options(real_bits=8, input_bits=(1, 2, 3)))


def test_what_it_costs_is_counted_on_images_whose_weight_is_not_0():
    net = c_programs.runtime("none")
    images = networks.images(net.artifact.image_size, 4)
    options = reference.calibrated(net.artifact, Options(real_bits=8), False, [images])
    expected = reference.Reference(net.artifact, options)
    classes = expected.program_logits(images).argmax(-1)
    # The third image does not count; of the others the program has two right.
    labels = np.where([True, False, True, True], classes, (classes + 1) % 5)
    batch = {"image": images, "label": labels, "weight": np.array([1, 1, 0, 1], np.float32)}
    found = cost.measure(net.artifact, expected, [batch])
    assert (found.images, found.after) == (3, 2)
    before = np.asarray(net.forward(images)).argmax(-1)
    assert found.agreeing == int((before == classes)[[0, 1, 3]].sum())
    assert found.before == int((before == labels)[[0, 1, 3]].sum())


@pytest.mark.parametrize(("more_bits", "cuts"), [(-4, False), (6, True)])
def test_fixed_point_says_whether_the_input_of_a_real_layer_may_be_cut(more_bits, cuts):
    artifact = c_programs.runtime("two-valued").artifact
    images = networks.images(artifact.image_size)
    options = reference.calibrated(artifact, Options(real_bits=8), True, [images])
    bits = tuple(max(b + more_bits, 0) for b in options.input_bits)
    options = dataclasses.replace(options, input_bits=bits)
    expected = reference.Reference(artifact, options)
    expected.traces(images)
    layers = {f"{name}: input" for name in expected.losses.cut}
    assert bool(layers) is cuts
    assert expected.losses.saturated.keys() == (layers if cuts else set())
    assert expected.losses.to_json()["proven"] is not cuts
    assert f"#define FTBNN_PROVEN {int(not cuts)}" in generate.files(artifact, options)["model.h"]
