"""The C program beside onnxruntime: that both run, and what the chain in 8 bits consists of."""

import collections
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "deploy"))

import networks

from ftbnn_jax.bench import c_program
from ftbnn_jax.deploy.c import build
from ftbnn_jax.errors import UserError


@pytest.fixture(scope="module")
def artifact():
    return networks.build(networks.DERIVED, 37)[2]


def test_a_chain_has_every_product(artifact):
    pytest.importorskip("onnx", reason="onnxruntime is compared with where it is installed")
    from ftbnn_jax.bench import quantized_chain
    from ftbnn_jax.deploy import onnx

    model = quantized_chain.model(artifact.graph)
    found = collections.Counter(node.op_type for node in model.graph.node)
    # Channels of 13 and 26 in 3 groups are uneven: each group has a product of its own.
    groups = [len(node.attributes["in_features"]) for node in artifact.graph.binary_products()]
    real = sum(node.op == "conv" for node in artifact.graph.nodes)
    assert found["QLinearConv"] == sum(groups) + real
    assert found["QLinearMatMul"] == 1
    run = onnx.load(model, 1)
    assert run(np.zeros((1, 37, 37, 3), np.uint8)).shape == (1, 5)


def test_a_program_is_timed(artifact, monkeypatch):
    try:
        build.compiler()
    except UserError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(c_program, "_ROUNDS", 1)
    monkeypatch.setattr(c_program, "_TURN_S", 0)
    found = c_program.times(artifact, flags=("-O1",))
    assert all(ms > 0 for name, ms in found.items() if name.endswith("_ms"))
    assert found["c_ms"] > 0
