"""The quantizers that the fields of a `ResNetSpec` name."""

from ftbnn_jax.nn import strategies
from ftbnn_jax.nn.plan import BinaryConvPlan
from ftbnn_jax.nn.spec import ResNetSpec
from ftbnn_jax.ops import quantizers

_REAL = {
    "tanh": quantizers.Tanh(),
    "hardtanh": quantizers.HardTanh(),
    "identity": quantizers.Identity(),
}
_UNBOUNDED = {
    "piecewise_quadratic": quantizers.PiecewiseQuadratic(),
    "evolving": quantizers.Evolving(),
}


def input_quantizer(spec: ResNetSpec, conv: BinaryConvPlan) -> quantizers.Quantizer:
    """Returns what a binary convolution of the network makes of its activations."""
    if not spec.binary_activations:
        return _REAL[spec.real_activations]
    gradient = _gradient(spec.activation_gradient, spec.ste_bound)
    if spec.ternary == "coupled":
        return quantizers.TernarySign(strategies.TERNARY_THRESHOLD, gradient)
    two_valued = spec.two_valued_sign(conv)
    return (quantizers.TwoValuedSign if two_valued else quantizers.ThreeValuedSign)(gradient)


def kernel_quantizer(spec: ResNetSpec) -> quantizers.Quantizer:
    """Returns what every binary convolution of the network makes of its latent weights."""
    if not spec.binary_weights:
        return quantizers.Identity()
    sign = quantizers.BalancedSign if spec.weight_balance else quantizers.TwoValuedSign
    return sign(_gradient(spec.weight_gradient, spec.ste_bound))


def _gradient(name: str, bound: float) -> quantizers.Gradient:
    return quantizers.Clipped(bound) if name == "clipped" else _UNBOUNDED[name]
