"""The networks as ONNX models, against the packed runtime."""

import json

import jax.numpy as jnp
import networks
import numpy as np
import pytest

from ftbnn_jax.bench import packed_layer, packed_network
from ftbnn_jax.deploy import artifact as artifact_lib
from ftbnn_jax.deploy import runtime as runtime_lib
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures
from ftbnn_jax.nn import spec as spec_lib
from ftbnn_jax.ops.packed import convolution as popcount

_REASON = "needs the extra onnx"
onnx = pytest.importorskip("onnx", reason=_REASON)
pytest.importorskip("onnxruntime", reason=_REASON)

from ftbnn_jax.deploy import onnx as onnx_network  # noqa: E402

_INTEGERS = {"float32": onnx.TensorProto.FLOAT, "int8": onnx.TensorProto.INT32}


def _with_outputs(model, plans, form):
    """The model with what reaches and what leaves every binary convolution as further outputs."""
    reads = {node.name: node.input[0] for node in model.graph.node}
    for plan in plans:
        for name, dtype in (
            (reads[f"{plan.name}/sign"], onnx.TensorProto.FLOAT),
            (f"{plan.name}/conv", _INTEGERS[form]),
        ):
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, dtype, None))
    return model


# Few activations, tens of thousands at most: with these seeds none lies so near to 0 (1e-6 of its size,
# by which two runtimes may round differently) that its sign, and with it the logits, could differ. The
# exact zeros that slopes of 0 and ReLU leave are zeros in both.
@pytest.mark.parametrize("form", onnx_network.FORMS)
@pytest.mark.parametrize(
    ("spec", "size"),
    [
        # Reduction by convolution, at sizes that halve and that do not; AND after the stages' ReLU.
        (architectures.small((1, 2), 8), 8),
        # A classifier that reads positions; 9x9, so that the last means are of fewer than four.
        (architectures.small((1, 1), 8, head="flatten"), 9),
        (architectures.small((1, 1), 8, groups=4, stem_activation="relu", activation="prelu"), 7),
        # Groups of 2, 2, 2, 2, 4 channels.
        (architectures.small((1, 1), 12, groups=5, stage_end_activation="fprelu"), 9),
        (architectures.small((1, 1), 12, groups=5, downsample="duplicate"), 8),
        (architectures.small((1, 1), 8, sign="two_valued", downsample="duplicate"), 7),
        # The large nets' stem, and a bridge.
        (
            spec_lib.ResNetSpec(
                blocks=(1, 1), width=12, stem_features=6, bridge=True, activation="none"
            ),
            19,
        ),
    ],
    ids=["conv", "positions", "odd", "uneven", "duplicate", "two_valued", "bridge"],
)
def test_a_network_gives_the_packed_integers_and_logits(spec, size, form):
    _, _, artifact = networks.build(spec, size)
    for name, tensor in artifact.tensors.items():
        if name.endswith("slope"):  # A subnormal slope gives subnormal activations.
            tensor[np.abs(tensor) < np.finfo(np.float32).tiny] = 0
    runtime = runtime_lib.Runtime(artifact)
    images = networks.images(size)
    expected = np.asarray(runtime.logits(images))
    model = onnx_network.network(artifact, form)
    found = onnx_network.load(model, 1)(images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())

    session = onnx_network.session(_with_outputs(model, spec.plan(), form), 1)
    _, *tensors = session.run(None, {"images": images})
    for plan, x, integers in zip(spec.plan(), tensors[::2], tensors[1::2], strict=True):
        packed = runtime.binary_conv(plan, jnp.asarray(x.transpose(0, 2, 3, 1)))
        np.testing.assert_array_equal(integers.transpose(0, 2, 3, 1), packed)


@pytest.mark.parametrize("form", onnx_network.FORMS)
@pytest.mark.parametrize("widths", [((7,), (5,)), ((4, 4), (3, 3)), ((3, 3, 5), (2, 2, 4))])
@pytest.mark.parametrize(("sign", "stride"), [("ternary", 1), ("ternary", 2), ("xnor", 1), ("xnor", 2)])
def test_a_layer_sums_products_of_signs(form, widths, sign, stride):
    """With zeros of both signs, against the sum over the window's positions, group by group."""
    rng = np.random.default_rng(0)
    conv = popcount.PackedConv(*widths, sign, strides=(stride, stride))
    kernels = [rng.random((3, 3, i, o)) < 0.5 for i, o in zip(*widths, strict=True)]
    x = rng.choice(np.array([-2, -0.0, 0.0, 0.5], np.float32), (2, sum(widths[0]), 7, 6))
    found = onnx_network.load(onnx_network.layer(conv, kernels, form), 1)(x)

    signs = np.where(x > 0, 1, -1) if sign == "xnor" else (x > 0).astype(int) - (x < 0)
    padded = np.pad(signs, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::stride, ::stride]
    parts = np.split(windows, np.cumsum(widths[0])[:-1], axis=1)
    expected = [
        np.einsum("nihwab,abio->nohw", part, 2 * kernel.astype(int) - 1)
        for part, kernel in zip(parts, kernels, strict=True)
    ]
    np.testing.assert_array_equal(found, np.concatenate(expected, axis=1))
    assert found.dtype == (np.int32 if form == "int8" else np.float32)


def test_the_benchmarks_time_onnxruntime_in_the_same_run(tmp_path, capsys, monkeypatch):
    def medians(calls):
        assert all(np.all(np.isfinite(call())) for call in calls)
        return [10.0 + i for i, _ in enumerate(calls)]

    monkeypatch.setattr(packed_layer, "medians", medians)
    monkeypatch.setattr(packed_layer, "BATCHES", (2,))
    monkeypatch.setattr(popcount, "FORMS", ("ternary",))
    config, variables, artifact = networks.build(architectures.small((1,), 4, groups=3), 8)
    found = packed_network.rows(config, variables, runtime_lib.Runtime(artifact))
    monkeypatch.setattr(packed_network, "rows", lambda *args: found)
    path = str(tmp_path / "model.safetensors")
    artifact_lib.save(path, artifact)
    assert packed_network.run(path, config, variables, as_json=True) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert packed_layer.main(["5:4:3", "--json"]) == 0
    rows += json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["block1_1", "whole network", "5x5, 4 channels, 3 groups"]
    names = ("float_ms", "packed_ms", "onnx_float32_ms", "onnx_int8_ms")
    assert {tuple(row[name] for name in names) for row in rows} == {(10, 11, 12, 13)}

    assert packed_network.run(path, config, variables) == 0
    text = capsys.readouterr().out
    assert text.count("onnxruntime") == 2
    assert text.count("12.000") == text.count("13.000") == 2
    assert "onnxruntime float32    12.000 ms  int8    13.000 ms" in packed_layer.line(found[0])


def test_a_layer_with_other_integers_is_not_timed(monkeypatch):
    class Wrong:
        FORMS = onnx_network.FORMS
        layer = onnx_network.layer

        @staticmethod
        def load(model, threads):
            run = onnx_network.load(model, threads)
            return lambda x: run(x) + 1

    monkeypatch.setattr(packed_layer, "onnx_network", Wrong)
    with pytest.raises(AssertionError, match="a: packed and onnxruntime's results differ"):
        packed_layer.layer("a", popcount.PackedConv((4,), (4,)), 5, 1)


def test_factors_that_depend_on_the_input_are_refused():
    _, _, artifact = networks.build(architectures.small((1,), 8, scaling="real_to_bin"), 6)
    with pytest.raises(UserError, match=r"model\.scaling='real_to_bin': the ONNX model"):
        onnx_network.network(artifact, "float32")
