"""Which quantizers the fields of a network name."""

import pytest

from ftbnn_jax.nn import architectures, quantizers
from ftbnn_jax.ops.quantizers import (
    Clipped,
    Evolving,
    Identity,
    PiecewiseQuadratic,
    Tanh,
    ThreeValuedSign,
    TwoValuedSign,
)


@pytest.mark.parametrize(
    ("fields", "inputs", "kernels"),
    [
        ({}, ThreeValuedSign(Clipped(1.2)), TwoValuedSign(Clipped(1.2))),
        ({"ste_bound": 0.5}, ThreeValuedSign(Clipped(0.5)), TwoValuedSign(Clipped(0.5))),
        ({"sign": "two_valued"}, TwoValuedSign(), TwoValuedSign()),
        # A ReLU leaves no negative input, and its zeros are zeros.
        ({"sign": "two_valued", "stem_activation": "relu"}, ThreeValuedSign(), TwoValuedSign()),
        ({"activation_gradient": "evolving"}, ThreeValuedSign(Evolving()), TwoValuedSign()),
        (
            {"weight_gradient": "piecewise_quadratic", "ste_bound": 1},
            ThreeValuedSign(Clipped(1.0)),
            TwoValuedSign(PiecewiseQuadratic()),
        ),
        ({"binary_activations": False}, Tanh(), TwoValuedSign()),
        (
            {"binary_activations": False, "real_activations": "identity", "binary_weights": False},
            Identity(),
            Identity(),
        ),
    ],
)
def test_quantizers_of_a_network(fields, inputs, kernels):
    net = architectures.small((1,), 4, **fields)
    (conv,) = net.plan()
    assert quantizers.input_quantizer(net, conv) == inputs
    assert quantizers.kernel_quantizer(net) == kernels
