"""Quantizers: what a binary convolution makes of its activations and its latent weights.

A quantizer is a frozen object that is called as `quantizer(x, progress)`: `x` has any shape and is
floating point, `progress`, a scalar, is the share of the training that is done, and the result has the
shape and dtype of `x`. A sign has a `Gradient`, since its own derivative is 0.

Signs count a subnormal number as 0, on every machine: some processors and compiler settings take it
for 0 in a comparison and some do not.
"""

import abc
import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ftbnn_jax import fields
from ftbnn_jax.errors import UserError


def is_positive(x: jax.Array) -> jax.Array:
    """Whether the sign of a floating point number is +1: True from the smallest normal number on."""
    return x >= jnp.finfo(x.dtype).tiny


def is_negative(x: jax.Array) -> jax.Array:
    """Whether the sign of a floating point number is -1; subnormal numbers as in `is_positive`."""
    return x <= -jnp.finfo(x.dtype).tiny


class Gradient(abc.ABC):
    """The gradient that takes the place of a sign's own: `dx = slope(x, progress) * dy`."""

    @abc.abstractmethod
    def slope(self, x: jax.Array, progress: jax.Array | float) -> jax.Array:
        """Returns the slope at each `x`, in its shape; booleans, a share of the memory, for 0 and 1."""


@dataclasses.dataclass(frozen=True)
class Clipped(Gradient):
    """The straight-through estimator, clipped (section 3).

    Backward:  `dx = dy` where `-bound <= x <= bound`, else 0.

    Attributes:
      bound: where the gradient ends, inclusive; 1.2 is the paper's.

    Raises:
      UserError: `bound` is not a positive number.
    """

    bound: float = 1.2

    def __post_init__(self):
        fields.check("Clipped.", self, {"bound": fields.POSITIVE})

    def slope(self, x, progress):
        return jnp.abs(x) <= jnp.asarray(self.bound, x.dtype)


@dataclasses.dataclass(frozen=True)
class PiecewiseQuadratic(Gradient):
    """Bi-Real Net's (Liu et al., 2018).

    Backward:  `dx = max(2 - 2|x|, 0) * dy`.
    """

    def slope(self, x, progress):
        return jnp.maximum(2 - 2 * jnp.abs(x), 0)


@dataclasses.dataclass(frozen=True)
class Evolving(Gradient):
    """IR-Net's (Qin et al., 2020): at first it passes everywhere, at the end it is a steep tanh's.

    Backward:  `dx = k * t * (1 - tanh(t * x)**2) * dy`, where `k = max(1 / t, 1)` and `t` grows from
    `first` to `last`, evenly in its logarithm, as `progress` does from 0 to 1.

    Attributes:
      first: the steepness at the start.
      last: the steepness at the end.

    Raises:
      UserError: one of them is not a positive number.
    """

    first: float = 0.1
    last: float = 10.0

    def __post_init__(self):
        fields.check("Evolving.", self, {"first": fields.POSITIVE, "last": fields.POSITIVE})

    def slope(self, x, progress):
        t = self.first * (self.last / self.first) ** jnp.asarray(progress, jnp.float32)
        slope = jnp.maximum(1 / t, 1) * t * (1 - jnp.square(jnp.tanh(t * x)))
        return slope.astype(x.dtype)


class Quantizer(abc.ABC):
    """A function of real activations or weights; the module says how it is called.

    Attributes:
      gives_signs: whether all that it returns is -1, 0 or +1.
    """

    gives_signs: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, x: jax.Array, progress: jax.Array | float = 1.0) -> jax.Array:
        """Returns what takes the place of `x`."""


@dataclasses.dataclass(frozen=True)
class _Sign(Quantizer):
    gradient: Gradient = Clipped()

    gives_signs = True

    def __post_init__(self):
        if not isinstance(self.gradient, Gradient):
            raise UserError(
                "must be a Gradient, such as Clipped()",
                f"{type(self).__name__}.gradient={fields.shown(self.gradient)}",
            )

    def __call__(self, x, progress=1.0):
        return _straight_through(self, x, progress)

    @abc.abstractmethod
    def sign(self, x: jax.Array) -> jax.Array:
        """Returns the forward pass."""


@dataclasses.dataclass(frozen=True)
class ThreeValuedSign(_Sign):
    """The sign of the paper's activations, for which an exact 0 stays 0.

    Forward:   `y = -1, 0, +1` for `x < 0, x == 0, x > 0`; -0.0 counts as 0.
    Backward:  that of `gradient`.

    Attributes:
      gradient: takes the place of the derivative.

    Raises:
      UserError: `gradient` is none.
    """

    def sign(self, x):
        # `jnp.sign` keeps the sign of -0.0, which is harmless in sums but not in bit patterns.
        return is_positive(x).astype(x.dtype) - is_negative(x).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class TwoValuedSign(_Sign):
    """The sign that one bit holds: that of weights, and of activations in Eq. 2.

    Forward:   `y = +1` for `x > 0`, else -1.
    Backward:  that of `gradient`.

    Attributes:
      gradient: takes the place of the derivative.

    Raises:
      UserError: `gradient` is none.
    """

    def sign(self, x):
        return jnp.where(is_positive(x), jnp.ones_like(x), -jnp.ones_like(x))


def standardized(w: jax.Array) -> jax.Array:
    """Returns weights `[..., O]` of mean 0 and unbiased variance 1 in each output channel."""
    axes = tuple(range(w.ndim - 1))
    centred = w - jnp.mean(w, axes, keepdims=True)
    variance = jnp.sum(jnp.square(centred), axes, keepdims=True) / (math.prod(w.shape[:-1]) - 1)
    return centred / jnp.sqrt(variance)


@dataclasses.dataclass(frozen=True)
class BalancedSign(TwoValuedSign):
    """IR-Net's sign of weights, half of which are +1 in each output channel (Qin et al., 2020).

    Forward:   `y = +1` where `v > 0`, else -1, of the standardised weights `v = (w - mean) / std`.
    Backward:  that of `gradient` at `v`, and through mean and standard deviation.

    Attributes:
      gradient: takes the place of the derivative.

    Raises:
      UserError: `gradient` is none.
    """

    def __call__(self, x, progress=1.0):
        return super().__call__(standardized(x), progress)


@dataclasses.dataclass(frozen=True)
class TernarySign(Quantizer):
    """Two signs in one: BinaryDuo's coupled activation (Kim et al., 2020b), from -1 to +1.

    Forward:   `y = (s(x - threshold) + s(x + threshold)) / 2`, where `s` is `TwoValuedSign`: -1, 0, +1.
    Backward:  the mean of both signs' gradients.

    Attributes:
      threshold: half of the range of `x` that gives 0.
      gradient: of both signs.

    Raises:
      UserError: `gradient` is none, or the threshold no positive number.
    """

    threshold: float = 0.5
    gradient: Gradient = Clipped()

    gives_signs = True

    def __post_init__(self):
        fields.check("TernarySign.", self, {"threshold": fields.POSITIVE})
        TwoValuedSign(self.gradient)

    def __call__(self, x, progress=1.0):
        sign = TwoValuedSign(self.gradient)
        return 0.5 * (sign(x - self.threshold, progress) + sign(x + self.threshold, progress))


@dataclasses.dataclass(frozen=True)
class HardTanh(Quantizer):
    """What stands for the activations' sign in Bi-Real Net's first training step (Liu et al., 2018).

    Forward:   `y = min(max(x, -1), 1)`.
    Backward:  `dx = dy` where `-1 < x < 1`, else 0; half of it at the ends.
    """

    def __call__(self, x, progress=1.0):
        return jnp.clip(x, -1, 1)


@dataclasses.dataclass(frozen=True)
class Tanh(Quantizer):
    """What stands for the activations' sign in the first of several training steps (Appendix C).

    Forward:   `y = tanh(x)`.
    Backward:  `dx = (1 - tanh(x)**2) * dy`.
    """

    def __call__(self, x, progress=1.0):
        return jnp.tanh(x)


@dataclasses.dataclass(frozen=True)
class Identity(Quantizer):
    """No quantization, for weights or activations that are to become binary later.

    Forward:   `y = x`.
    Backward:  `dx = dy`.
    """

    def __call__(self, x, progress=1.0):
        return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _straight_through(quantizer: _Sign, x: jax.Array, progress: Any) -> jax.Array:
    return quantizer.sign(x)


def _straight_through_fwd(quantizer, x, progress):
    return quantizer.sign(x), quantizer.gradient.slope(x, progress)


def _straight_through_bwd(quantizer, slope, g):
    del quantizer  # Its slope is there.
    # The gradient of `progress` is None.
    return (jnp.where(slope, g, 0) if slope.dtype == jnp.bool_ else g * slope), None


_straight_through.defvjp(_straight_through_fwd, _straight_through_bwd)
