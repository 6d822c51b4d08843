"""How far two computations of a network in float32 can be apart by rounding alone.

The packed runtime adds in another order than the C program and may fuse multiplications into additions.
Whatever the order, a sum of n products is off by at most `gamma(n) * sum |x| |w|`, `gamma(n) = n u /
(1 - n u)` and `u = 2**-24` (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).
Such errors are followed from what one binary convolution reads to what the next one does, channel by
channel, for the largest magnitudes that the values have taken. Integers have none, as long as no sign
differs before them.
"""

import math
from collections.abc import Sequence

import numpy as np

from ftbnn_jax.deploy.c import schedule, tables
from ftbnn_jax.deploy.c.emulator import Trace

_UNIT = 2.0**-24
# What a flushed subnormal number, of the values or of the constants, may make of a product.
_TINY = 2 * float(np.finfo(np.float32).tiny)


def bounds(
    network: schedule.Network, trace: Trace, inputs: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns how far two computations of a batch can be apart where all integers before agree.

    Args:
      network: the layers.
      trace: of a batch of N images in single precision.
      inputs: what each binary convolution read in the other computation, float32 `[N, H, W, C]`.

    Returns:
      For what each binary convolution reads, `[N, C]`, and for the logits, `[N, classes]`; float64.
    """
    return _Bounds(network, trace).run(inputs)


class _Bounds:
    """Differences `[N, C]` between two computations, from layer to layer."""

    def __init__(self, network: schedule.Network, trace: Trace):
        self._network = network
        self._trace = trace
        self._tensors = tables.float_tensors(network)

    def run(self, inputs):
        spec = self._network.described.spec
        # A pixel is subtracted from, divided, and maybe multiplied with an inverse instead.
        pixels = self._rounded("stem/pixels", 0.0, 3)
        error = self._products("stem/conv/kernel", "stem/pixels", pixels)
        error = self._norm("stem/bn", "stem/conv/kernel", error)
        error = self._activation("stem", "stem/bn", spec.stem_activation, error)
        previous, found = "stem/output", []
        for block, (x, sums), other in zip(
            self._network.blocks, self._trace.records, inputs, strict=True
        ):
            plan, name = block.plan, block.plan.name
            found.append(np.tile(error, 2) if plan.shortcut == "duplicate" else error)
            # From here on, what the difference is counts, not what it may be.
            error = np.abs(x.astype(np.float64) - other).max((1, 2))[:, : plan.in_features]
            shortcut = self._shortcut(plan, previous, error)
            largest = np.abs(sums).max((1, 2)).astype(np.float64)
            error, before = self._apply_norm(f"{name}/bn", largest, 0.0), f"{name}/bn"
            if shortcut is not None:
                before = f"{name}/sum"
                error = self._rounded(before, error + shortcut, 1)
            error = self._activation(name, before, plan.activation, error)
            previous = f"{name}/output"
        mean = self._mean(previous, error, self._network.last_size**2)
        logits = self._products("head/kernel", "mean", mean, scale=self._tensors["head/scale"])
        return found, self._rounded("logits", logits, 2)

    def _shortcut(self, plan, previous, error):
        if plan.shortcut in ("none", "identity"):
            return None if plan.shortcut == "none" else error
        if plan.shortcut == "duplicate":
            return np.tile(self._mean(previous, error, 9), 2)
        name = f"{plan.name}/shortcut"
        error = self._products(f"{name}_conv/kernel", name, self._mean(previous, error, 4))
        return self._norm(f"{name}_bn", f"{name}_conv/kernel", error)

    def _mean(self, name, error, terms):
        # The sum, a division and, for an inverse, one rounding more.
        return error + _apart(terms + 2) * (self._largest(name) + error) + _TINY

    def _largest(self, name):
        return self._trace.largest[name].astype(np.float64)

    def _rounded(self, name, error, roundings):
        return error + _apart(roundings) * (self._largest(name) + error) + _TINY

    def _products(self, kernel, name, error, scale=1.0):
        """Errors of sums of products of `name`, whose error is given, with a kernel."""
        weights = np.abs(self._tensors[kernel].astype(np.float64))
        terms = math.prod(weights.shape[:-1])
        # Channels come last but one; all places of a window count.
        heaviest = weights.reshape(-1, *weights.shape[-2:]).sum(0) * scale
        largest = self._largest(name) + error
        # One rounding more for a weight that is scaled first.
        rounding = error @ heaviest + _apart(terms + 2) * (largest @ heaviest)
        return rounding + terms * _TINY * (1 + largest.max() + heaviest.max())

    def _norm(self, name, before, error):
        return self._apply_norm(name, self._largest(before) + error, error)

    def _apply_norm(self, name, largest, error):
        multiplier, offset = (
            np.abs(self._tensors[f"{name}/{part}"].astype(np.float64))
            for part in ("multiplier", "offset")
        )
        rounding = _apart(2) * (largest * multiplier + offset) + _TINY * (1 + largest + multiplier)
        return error * multiplier + rounding

    def _activation(self, name, before, kind, error):
        if kind in ("none", "relu"):
            return error
        slopes = [
            np.abs(self._tensors[slope].astype(np.float64))
            for slope in (f"{name}/act/{sign}_slope" for sign in ("negative", "positive"))
            if slope in self._tensors
        ]
        steepest = np.maximum(slopes[0], slopes[1] if kind == "fprelu" else 1.0)
        largest = self._largest(before) + error
        return steepest * (error + _apart(1) * largest) + _TINY * (1 + largest + steepest)


def _apart(n: int) -> float:
    """Returns how far two results of n roundings are apart: each is off by `gamma(n)`."""
    return 2 * n * _UNIT / (1 - n * _UNIT)
