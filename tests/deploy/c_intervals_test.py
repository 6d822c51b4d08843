"""Intervals of a program's values: they hold for every image, and are sharp for single operations."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import ftbnn_jax
from ftbnn_jax.deploy.c import arithmetic, emulator, fixed_point, lowering, reference
from ftbnn_jax.deploy.c.options import Options

_RNG = np.random.default_rng(0)
_SIGNS = np.where(_RNG.random((4, 5)) < 0.5, -1.0, 1.0).astype(np.float32)
_REAL = _RNG.standard_normal((3, 3, 4, 4)).astype(np.float32)
_BITS = np.where(_RNG.random((3, 3, 4, 4)) < 0.5, -1.0, 1.0).astype(np.float32)
_OFFSET = _RNG.standard_normal(4).astype(np.float32)
_NUMBERS = ("NHWC", "HWIO", "NHWC")


def _quantized(function, images, bits=20):
    """Returns the loops of a function of weights and images, and the network in fixed point."""
    network = lowering.lower(ftbnn_jax.pack(function, _SIGNS, images))
    return network, fixed_point.quantize(network, bits, arithmetic.Names(set()))


def _values(network, quantized, images):
    """Returns every array of the program on some images, by name."""
    found = {}

    def note(node, operands, result):
        found[node.name] = result

    emulator.Emulator(network, quantized).trace(images, note)
    return found


def _of_two(operation):
    """A network of two pixels, whose signs are those of one number that is made of them."""

    def function(variables, images):
        x = images.astype(jnp.float32) / 16 - 4
        y = operation(x[:, :1], x[:, 1:])
        return jnp.sign(y) @ variables[:1] + y

    return function


# Two pixels have all values from -4 to 11.94; each is an operand once.
_OPERATIONS = {
    "add": lambda x, y: x + y,
    "subtract": lambda x, y: 3 * x - y,
    "multiply": lambda x, y: x * y,
    "square": lambda x, y: x * x,
    "divide": lambda x, y: x / (y + 5),
    "larger": lambda x, y: jnp.maximum(x, 2 * y),
    "clip": lambda x, y: jnp.clip(x, -1, 2),
    "magnitude": lambda x, y: jnp.abs(x),
    "chosen": lambda x, y: jnp.where(y > 3, x, 9.0),
    "never chosen": lambda x, y: jnp.where(y > 12, 100.0, x),
    "scaled": lambda x, y: x * -0.37 + 0.11,
    "mean": lambda x, y: (x + y) / 3,
    "side by side": lambda x, y: jnp.concatenate([x, 2 * y], -1).max(-1, keepdims=True),
}


@pytest.mark.parametrize("name", _OPERATIONS)
def test_ends_of_an_operation_are_reached_by_images_and_never_left(name):
    images = np.array(list(itertools.product([*range(0, 256, 4), 255], repeat=2)), np.uint8)
    network, quantized = _quantized(_of_two(_OPERATIONS[name]), images[:3])
    (product,) = network.graph.binary_products()
    node = network.nodes[network.nodes[product.inputs[0]].inputs[0]]
    while node.op in ("select", "compare"):
        node = network.nodes[node.inputs[0]]
    found = _values(network, quantized, images)[node.name]
    low, high = quantized.ranges.of(node.name).ends()
    assert (low, high) == (found.min(), found.max())
    assert low < high
    assert quantized.unproven == {}


def _conv(x, kernel, groups=1, padding="SAME"):
    return lax.conv_general_dilated(
        *(x, kernel, (1, 1), padding), dimension_numbers=_NUMBERS, feature_group_count=groups
    )


_STEPS = {
    "norm": lambda x: x * (0.3 * _OFFSET) + _OFFSET,
    "relu": lambda x: jnp.maximum(x, 0),
    "prelu": lambda x: jnp.where(x > 0, x, x * _OFFSET),
    "clip": lambda x: jnp.clip(x, -0.5, 1.5),
    "binary": lambda x: _conv(jnp.sign(x), _BITS),
    "unpadded": lambda x: _conv(jnp.where(x > 0, 1.0, -1.0), _BITS, padding=((1, 1), (1, 1))),
    "real": lambda x: _conv(x, _REAL),
    "groups": lambda x: _conv(x, _REAL[:, :, :2], 2),
    "residual": lambda x: x + 0.25 * x[:, :, ::-1],
    "largest": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "SAME"),
    "average": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "SAME") / 4,
    "mean": lambda x: x - x.mean((1, 2), keepdims=True),
    "gate": lambda x: x * jnp.clip(x.mean((1, 2), keepdims=True), 0, 1),
    "turned": lambda x: jnp.transpose(x, (0, 2, 1, 3))[..., ::-1],
    "edges": lambda x: lax.pad(x, jnp.float32(0.5), ((0, 0, 0), (1, -1, 0), (0, 0, 0), (0, 0, 0))),
    "halves": lambda x: jnp.concatenate([x[..., 2:], -x[..., :2]], -1),
    "taken": lambda x: jnp.take(x, np.array([3, 1, 1, 0]), axis=-1, mode="clip"),
    "ratio": lambda x: x / (1 + jnp.abs(x)),
    "rows": lambda x: x.reshape(x.shape[0], -1, 4)[:, ::-1].reshape(x.shape),
}


def _steps(names):
    def function(variables, images):
        x = images.astype(jnp.float32) / 64 - 2
        for name in names:
            x = _STEPS[name](x)
        return jnp.sign(x[:, 1, 2]) @ variables + 1

    return function


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(sorted(_STEPS)), min_size=2, max_size=7), st.integers(0, 2**32 - 1))
def test_no_value_of_any_network_leaves_its_interval(names, seed):
    rng = np.random.default_rng(seed)
    shape = (4, 4, 4)
    images = [np.zeros(shape), np.full(shape, 255), rng.integers(0, 256, shape)]
    images += [rng.choice([0, 255], shape), rng.choice([0, 255], 4) + np.zeros(shape)]
    images = np.array(images, np.uint8)
    network, quantized = _quantized(_steps(names), images)
    for name, result in _values(network, quantized, images).items():
        if name in quantized.ranges:
            low, high = quantized.ranges.of(name)
            assert (low <= result).all(), name
            assert (result <= high).all(), name
    exact = [quantized.ranges.exact[name] for name in quantized.scaled() if name in quantized.ranges]
    assert quantized.unproven or all(x.is_within(-(2**31), 2**31 - 1) for x in exact)


def test_a_divisor_that_may_be_0_is_named_and_the_ranges_of_images_are_taken():
    images = np.array([[100, 20], [90, 40]], np.uint8)
    artifact = ftbnn_jax.pack(_of_two(lambda x, y: x / (x - y + 1)), _SIGNS, images)
    network = lowering.lower(artifact)
    assert not fixed_point.is_proven(network)
    bits = reference.calibrate(artifact, [images])
    # Numbers up to 6, and eight times as much.
    assert bits == 31 - 3 - 3
    found = reference.Reference(artifact, Options(bits))
    single, program = found.traces(images)
    assert next(iter(found.losses.too_large)) == "div_2"
    assert found.losses.saturated == {}
    np.testing.assert_allclose(program.logits * 2.0**-found.fraction_bits, single.logits, atol=1e-5)


def test_partial_sums_have_room_for_terms_that_cancel():
    def apart(x, y):
        return jnp.concatenate([x - 100, y + 100], -1).sum(-1, keepdims=True)

    network, quantized = _quantized(_of_two(apart), np.zeros((2, 2), np.uint8))
    (node,) = (node for node in network.graph.nodes if node.op == "reduce_sum")
    unit = 2 ** quantized.bits_of(node.name)
    # Pixels from -4 to 11.9375; the sum begins with either term.
    assert quantized.ranges.of(node.name).ends() == (-8 * unit, 23.875 * unit)
    assert quantized.ranges.partial[node.name].ends() == (-104 * unit, 111.9375 * unit)
