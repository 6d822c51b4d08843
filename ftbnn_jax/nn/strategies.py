"""The strategies of Table 1 that a network can be trained with, and which go together.

They are fields of `spec.ResNetSpec`, each independent of the others where that makes sense.
"""

from typing import Any

from ftbnn_jax.errors import UserError

# Gradients of a sign; `ops.quantizers` has the formulas: inside `ste_bound`, Bi-Real Net's, IR-Net's.
GRADIENTS = ("clipped", "piecewise_quadratic", "evolving")

# Factors that the integers of a binary convolution are multiplied with, before batch norm:
#
#   none            nothing
#   mean_abs        mean |w| of the output channel's latent weights: Bi-Real Net's, and XNOR-Net's half
#                   for the weights
#   xnor_net        that, and the 3x3 mean of mean |a| over the input channels of the group
#   xnor_net++      one learnt factor an output channel, 1 at the start (the first of the four forms in
#                   Bulat & Tzimiropoulos, 2019: the others tie a network to one image size)
#   power_of_two    the power of two nearest, in its logarithm, to mean |v| of the output channel's
#                   standardised latent weights: IR-Net's
#   real_to_bin     one factor a sample and output channel, from the global mean of the input through two
#                   matrix products, the inner one `REAL_TO_BIN_REDUCTION` times narrower, and a sigmoid
#
# Factors from weights or activations are constants to the gradient. The
# batch norm behind takes a constant factor of a channel out again: but for its epsilon, a network with
# `mean_abs` gives the same loss and the same gradients as one with `none`.
SCALINGS = ("none", "mean_abs", "xnor_net", "xnor_net++", "power_of_two", "real_to_bin")
REAL_TO_BIN_REDUCTION = 8

# These factors are computed from the latent weights' magnitudes.
FROM_WEIGHTS = ("mean_abs", "xnor_net", "power_of_two")
# These are different for each image, so that batch norm cannot absorb them.
FROM_INPUT = ("xnor_net", "real_to_bin")

# BinaryDuo's activations (Kim et al., 2020b): "coupled" ones have three values, -1, 0 and +1, and come
# apart into the two signs that they are the mean of, at a threshold and at its negative. A "decoupled"
# convolution reads both, each with weights of its own: with the same weights it gives the same.
TERNARIES = ("none", "coupled", "decoupled")
TERNARY_THRESHOLD = 0.5


def check(spec: Any) -> None:
    """Raises a UserError where a field makes no sense beside another.

    Args:
      spec: a `spec.ResNetSpec`, or an `Architecture`, which lacks the fields for training.
    """
    if spec.block != "binary":
        _require(
            spec,
            f"is for binary convolutions, and model.block={spec.block!r} has none",
            groups=1,
            bridge=False,
            downsample="conv",
            sign="three_valued",
            activation_gradient="clipped",
            weight_gradient="clipped",
            scaling="none",
            binary_activations=True,
            binary_weights=True,
            weight_balance=False,
            ternary="none",
            shortcut_span=1,
        )
    if spec.binary_activations:
        reason = "takes the place of the activations' sign, and model.binary_activations=True has it"
        _require(spec, reason, real_activations="tanh")
    else:
        reason = "is for the activations' sign, and model.binary_activations=False has none"
        _require(spec, reason, sign="three_valued", activation_gradient="clipped", ternary="none")
        if spec.scaling == "xnor_net":
            _require(spec, reason, scaling="none")
    if not spec.binary_weights:
        reason = "is for the weights' sign, and model.binary_weights=False has none"
        _require(spec, reason, weight_gradient="clipped", weight_balance=False)
        if spec.scaling in FROM_WEIGHTS:
            _require(spec, reason, scaling="none")
    if spec.ternary != "none":
        reason = f"does not go with model.ternary={spec.ternary!r}"
        _require(spec, reason, groups=1, downsample="conv", sign="three_valued")
        if spec.scaling not in ("none", "xnor_net++"):
            _require(spec, reason, scaling="none")
    if spec.shortcut_span > 1:
        reason = f"does not go with model.shortcut_span={spec.shortcut_span}"
        _require(spec, reason, downsample="conv")


def _require(spec: Any, reason: str, **values: Any) -> None:
    for field, value in values.items():
        if getattr(spec, field, value) != value:
            raise UserError(f"{reason}; {value!r} would do", f"model.{field}={getattr(spec, field)!r}")
