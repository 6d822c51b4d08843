"""The benchmark's and the audit's reports."""

import json
import os

import jax
import networks
import numpy as np
import pytest

from ftbnn_jax.bench import packed_layer, packed_network
from ftbnn_jax.deploy import audit
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures
from ftbnn_jax.ops.packed import convolution as packed


@pytest.fixture(scope="module")
def built():
    return networks.build(architectures.small((1, 1), 12, groups=5, stage_end_activation="fprelu"), 8)


def test_what_is_not_packed_stands_in_the_file_of_its_layer(built):
    found = {line.layer: line.source.partition(":")[0] for line in built[2].report.not_packed}
    assert found["stem/conv"] == "ftbnn_jax/nn/blocks.py"
    assert found["head"] == "ftbnn_jax/nn/resnet.py"


def test_operations_are_two_for_each_pair_of_signs():
    conv = packed.PackedConv((30, 34), (20, 24), strides=(2, 2))
    assert packed_layer.operations(conv, 14) == 2 * 9 * 7 * 7 * (30 * 20 + 34 * 24)


@pytest.mark.parametrize("text", ["", "56", "56:64", "56:64:x", "0:64:1", "56:4:5"])
def test_a_layer_that_makes_no_sense_is_named(text):
    with pytest.raises(UserError, match="SIZE:CHANNELS:GROUPS expected"):
        packed_layer.parse_layer(text)


def test_the_micro_benchmark_times_every_form_at_each_batch(capsys):
    assert packed_layer.main(["5:12:5", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    found = [(row["batch"], row["form"]) for row in rows]
    assert found == [(b, f) for b in packed_layer.BATCHES for f in packed.FORMS]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["float_ms"] / row["packed_ms"])
        assert row["gops"] > 0


def test_without_onnxruntime_a_line_says_what_would_add_it(built, tmp_path, capsys, monkeypatch):
    row = packed_layer.Row("a", "and", 1, 4.0, 2.0, 10)
    monkeypatch.setattr(packed_layer, "onnx_network", None)
    monkeypatch.setattr(packed_layer, "layer", lambda *args: row)
    monkeypatch.setattr(packed_network, "rows", lambda *args: [row])
    assert packed_layer.onnx_calls(lambda form: None, np.zeros(1)) == []
    assert packed_layer.main(["5:12:5"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == packed_layer.NO_ONNX
    assert text.count("onnxruntime") == 1

    config, variables, artifact = built
    path = str(tmp_path / "model.safetensors")
    artifact.save(path)
    assert packed_network.run(path, config, variables) == 0
    text = capsys.readouterr().out
    assert packed_layer.NO_ONNX in text
    assert text.count("onnxruntime") == 1
    assert packed_network.run(path, config, variables, as_json=True) == 0
    (found,) = json.loads(capsys.readouterr().out)["rows"]
    assert found["onnx_float32_ms"] is found["onnx_int8_ms"] is None


def test_a_network_is_timed_layer_by_layer_and_whole(built, tmp_path, capsys):
    config, variables, artifact = built
    path = str(tmp_path / "model.safetensors")
    artifact.save(path)
    assert packed_network.run(path, config, variables, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    names = [row["name"] for row in report["rows"] if row["batch"] == 1]
    assert names == ["block1_1/conv", "block2_1/conv", "whole network"]
    assert report["packed_bytes"] == os.path.getsize(path)
    assert report["float32_bytes"] == sum(leaf.nbytes for leaf in jax.tree.leaves(variables))


def test_the_audit_counts_what_was_planted(built, capsys):
    config, variables, _ = built
    variables = jax.tree.map(np.copy, variables)
    block = variables["params"]["block2_1"]
    for g in range(5):
        block["conv"][f"kernel_{g}"][:] = 0.5
    block["conv"]["kernel_1"][0, 0, 0, :2] = [0.0, -0.0]
    block["bn"]["scale"][:] = 1
    block["bn"]["scale"][:3] = 0
    block["act"]["negative_slope"][:] = np.linspace(-1, 2, 24)
    other = jax.tree.map(np.copy, variables)
    other["params"]["block2_1"]["conv"]["kernel_4"][:] = -0.5
    batches = [{"image": networks.images(8), "weight": np.ones(3)}]

    assert audit.run(config, variables, 3, batches, other, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    first, second = report["layers"]
    assert first["flipped"] == 0
    # Groups of 12 channels in 5: 2, 2, 2, 2, 4; of 24 in 5: 4, 4, 4, 4, 8.
    weights = 9 * (4 * 2 * 4 + 4 * 8)
    assert second["weights"] == weights
    assert second["flipped"] == pytest.approx(9 * 4 * 8 / weights)
    assert second["latent_zeros"] == 2
    assert second["dead"] == 3
    assert second["negative_slope"] == pytest.approx([0.5, -1, 2])
    # Slopes of 0 were planted among the first block's, so some inputs of the second are 0.
    assert 0 <= second["zero_activations"] < 1
    sizes = report["sizes"]
    assert sizes["binary kernels"]["least"] * 8 == sum(layer["weights"] for layer in report["layers"])
    assert sizes["all"]["bytes"] >= sizes["all"]["least"]
    assert audit.run(config, variables, 3, batches, other) == 0
    assert "block2_1" in capsys.readouterr().out


def test_an_audit_without_images_or_another_checkpoint_leaves_those_columns_out(built):
    config, variables, _ = built
    for layer in audit.layers(config, variables, 3, []):
        assert layer["zero_activations"] is None
        assert layer["flipped"] is None
