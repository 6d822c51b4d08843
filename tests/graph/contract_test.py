"""Every network goes the whole way: budget, pack, save, load, verify, ONNX, C."""

import dataclasses
import math
from typing import Any

import contract_networks
import jax
import numpy as np
import pytest

import ftbnn_jax
from ftbnn_jax import budget
from ftbnn_jax.errors import UserError
from ftbnn_jax.graph import ir

# Relative to the largest logit: two programs of the same arithmetic, fused by the compiler in two ways.
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class _Packed:
    network: contract_networks.Network
    function: Any
    variables: Any
    images: np.ndarray
    artifact: Any

    @property
    def example(self):
        return jax.ShapeDtypeStruct(self.images.shape, self.images.dtype)

    def expected(self, images):
        """The logits of the network itself."""
        return np.asarray(jax.jit(self.function)(self.variables, images))


@pytest.fixture(scope="module", params=contract_networks.NETWORKS, ids=lambda n: n.name)
def packed(request):
    network = request.param
    pytest.importorskip(network.needs)
    function, variables = network.build()
    images = network.images()
    artifact = ftbnn_jax.pack(function, variables, images, classifier_bits=32, **network.options)
    return _Packed(network, function, variables, images, artifact)


def _deviation(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_every_binary_product_is_packed(packed):
    network, report = packed.network, packed.artifact.report
    products = packed.artifact.graph.binary_products()
    assert tuple(product.attributes["form"] for product in products) == network.forms
    # Groups of channels side by side are one product of the graph and several of the program.
    weights = sum(math.prod(line.kernel) for line in report.packed)
    assert weights == sum(ir.kernel_bits(product.attributes) for product in products)
    assert {line.form for line in report.packed} == set(network.forms)
    assert len(report.not_packed) == network.real
    reasons = [line.reason for line in report.not_packed]
    assert any(network.reason in reason for reason in reasons) or not reasons
    assert bool(report.replaced) == network.estimator


def test_the_budget_counts_the_same_products(packed):
    b = budget.count(packed.function, packed.variables, packed.example, memory=False)
    assert b.binary_macs == packed.network.binary_macs


def test_no_integer_differs(packed):
    batches = [packed.images, packed.network.images(seed=2)]
    result = ftbnn_jax.verify(packed.function, packed.variables, packed.artifact, batches)
    assert result.packed == len(packed.network.forms)
    assert all(layer.compared for layer in result.layers)
    assert result.differing == result.not_finite == 0
    assert result.agreeing == result.images == 8
    assert result.logit_error <= _ROUNDING
    # A two-valued sign has made -1 or 1 of what was 0.
    zeros = [layer.zeros for layer in result.layers if layer.form != "xnor"]
    assert sum(zeros) > 0 or not zeros
    assert result.deviation == 0


def test_a_classifier_of_16_bits_is_off_by_what_its_rounding_explains(packed):
    options = packed.network.options
    artifact = ftbnn_jax.pack(packed.function, packed.variables, packed.example, **options)
    result = ftbnn_jax.verify(packed.function, packed.variables, artifact, [packed.images])
    assert result.differing == 0
    assert result.logit_share <= 1


def test_a_saved_network_gives_what_the_function_gives(packed, tmp_path):
    path = str(tmp_path / "net.safetensors")
    packed.artifact.save(path)
    net = ftbnn_jax.load(path)
    # Batches of other sizes than the one that was traced.
    for images in (packed.images[:1], packed.network.images(7, seed=3)):
        assert _deviation(np.asarray(net(images)), packed.expected(images)) <= _ROUNDING


@pytest.mark.parametrize("form", ["float32", "int8"])
def test_onnx_gives_the_packed_integers_and_results(packed, form):
    for module in ("onnx", "onnxruntime"):
        pytest.importorskip(module, reason="needs the extra onnx")
    from ftbnn_jax.deploy import onnx, onnx_verify, runtime

    model = onnx.network(packed.artifact.graph, form)
    result = onnx_verify.compare(model, runtime.Runtime(packed.artifact), [packed.images])
    assert len(result.layers) == len(packed.network.forms)
    assert all(layer.compared for layer in result.layers)
    assert list(result.failures()) == []
    # Of so few activations none lies within rounding of where its sign turns.
    assert sum(layer.turned for layer in result.layers) == 0
    assert result.agreeing == result.images == len(packed.images)
    # Batches of any size.
    run = onnx.load(model, 1)
    assert _deviation(run(packed.images[:1]), run(packed.images)[:1]) <= _ROUNDING


def test_c_gives_the_packed_integers_and_results(packed, tmp_path):
    from ftbnn_jax.deploy import runtime
    from ftbnn_jax.deploy.c import build, export, generate, verify

    try:
        build.compiler()
    except UserError as error:
        pytest.skip(str(error))
    files = {name: text.encode() for name, text in generate.files(packed.artifact).items()}
    export.write(tmp_path / "c", files)
    batch = {"image": packed.images, "weight": np.ones(len(packed.images))}
    net = runtime.Runtime(packed.artifact)
    result = verify.compare(tmp_path / "c", net, [batch], ("-O0", "-Werror"))
    assert list(result.failures()) == []
    assert len(result.layers) == len(packed.network.forms)
    for layer in result.layers:
        assert layer.compared > 0
        # Of so few activations none lies within rounding of where its sign turns.
        assert layer.differing == layer.end_to_end == layer.rounded == 0
    assert result.agreeing == result.logits_bounded == result.images == len(packed.images)


def test_an_estimator_that_is_not_the_sign_is_told():
    """Where `x` is far from 0, `sign(x) - x` is `-x`, and the sum 0 instead of the sign."""
    (network,) = (n for n in contract_networks.NETWORKS if n.name == "x + sg(sign(x) - x)")
    function, variables = network.build()

    def far(variables, images):
        return function(variables, 1e9 * images)

    images = network.images()
    artifact = ftbnn_jax.pack(far, variables, images)
    result = ftbnn_jax.verify(far, variables, artifact, [images])
    assert (result.differing, result.deviation) == (0, 1)


def test_scaled_kernels_are_packed_on_request_alone():
    (network,) = (n for n in contract_networks.NETWORKS if n.name == "scaled kernels")
    report = ftbnn_jax.pack(*network.build(), network.images()).report
    reasons = [line.reason for line in report.not_packed if "scaled_kernels=True" in line.reason]
    assert (len(reasons), report.packed) == (2, ())


def test_other_images_than_the_network_takes_are_a_users_mistake(tmp_path):
    network = contract_networks.NETWORKS[-1]
    function, variables = network.build()
    artifact = ftbnn_jax.pack(function, variables, network.images())
    artifact.save(str(tmp_path / "net"))
    net = ftbnn_jax.load(str(tmp_path / "net"))
    for images in (network.images().astype(np.uint8), network.images()[..., 1:], 3):
        with pytest.raises(UserError, match=r"images: float32 \[N, 9, 16\] expected"):
            net(images)
        with pytest.raises(UserError, match=r"images: float32 \[N, 9, 16\] expected"):
            ftbnn_jax.verify(function, variables, artifact, [images])
