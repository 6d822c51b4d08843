"""Activation memory of a training step: what the backward pass is handed, for one more image."""

import jax.numpy as jnp
import pytest
from flax import linen as nn

from ftbnn_jax import budget
from ftbnn_jax.nn import activations, architectures, blocks
from ftbnn_jax.nn.resnet import ResNet

_POSITIONS = 6 * 10


class Stack(nn.Module):
    layers: tuple

    @nn.compact
    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        # The gradient of its kernel needs a layer's input.
        ((nn.Dense(5),), {"": 4 * _POSITIONS * 8}),
        (
            (nn.Dense(5, use_bias=False), nn.Dense(7)),
            {"": 4 * _POSITIONS * 8, "layers_0": 4 * _POSITIONS * 5},
        ),
        # A mask of what is inside the clip and the signs, a byte each (on a CPU); never the weights.
        ((blocks.BinaryConv(5, groups=2),), {"layers_0": _POSITIONS * 8}),
        (
            (nn.Dense(9), blocks.BinaryConv(5)),
            {"": 4 * _POSITIONS * 8, "layers_1": (1 + 1) * _POSITIONS * 9},
        ),
        # Nothing that is trained comes before it.
        ((nn.relu,), {}),
        # The slope's gradient needs the input, and where it is positive.
        ((activations.PReLU(),), {"": 4 * _POSITIONS * 8, "layers_0": _POSITIONS * 8}),
    ],
)  # fmt: skip
def test_what_a_layer_leaves(layers, expected):
    b = budget.count(Stack(layers), (6, 10, 8))
    assert {
        layer.name: layer.activation_bytes for layer in b.layers if layer.activation_bytes
    } == expected
    assert b.activation_bytes == sum(expected.values())


def test_memory_follows_the_positions_and_not_the_batch():
    net = ResNet(architectures.small((2, 2), 8), 3)
    sizes = {n: budget.count(net, (n, n, 3)).activation_bytes for n in (8, 16, 32)}
    head = 4 * (2 * 8)  # the means that the classifier reads
    assert (sizes[16] - head) / (sizes[8] - head) == (sizes[32] - head) / (sizes[16] - head) == 4
    batch = budget.count(net, jnp.zeros((5, 8, 8, 3)))
    assert batch.activation_bytes == sizes[8]


def test_bfloat16_between_the_blocks_takes_less():
    nets = [ResNet(architectures.small((2, 2), 8), 3, dtype) for dtype in (jnp.float32, jnp.bfloat16)]
    wide, narrow = (budget.count(net, (16, 16, 3)).activation_bytes for net in nets)
    assert narrow < wide


def test_memory_is_left_out_on_request():
    b = budget.count(Stack((nn.Dense(5),)), (8,), memory=False)
    assert b.activation_bytes is None
    assert b.flops == 8 * 5
