"""Binary convolution by population count, in three forms.

With `a` and `w` the sign bits of a window and of a kernel, and `m` set where the window holds no 0:

    form     inputs      sum
    xnor     -1, +1      K - 2 * popcount(a ^ w)
    and      0, +1       2 * popcount(a & w) - popcount(a)                 (Eq. 6, after ReLU)
    ternary  -1, 0, +1   popcount(m) - 2 * popcount(m & (a ^ w))

Zero padding is one more 0: right by itself in the last two forms, put right in the first by a table
that is computed beforehand. A convolution in the ternary form looks first whether its input holds any 0,
and counts as xnor does where it holds none.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from ftbnn_jax.ops import quantizers
from ftbnn_jax.ops.conv.geometry import Padding, Pair, output_size
from ftbnn_jax.ops.packed import bits as bitpack
from ftbnn_jax.ops.packed import popcount as counting
from ftbnn_jax.ops.packed import windows
from ftbnn_jax.ops.packed.windows import Windows

FORMS = ("xnor", "and", "ternary")

# What exported programs call this operation; the version changes with the meaning of its arguments.
# `lax.composite` would be made for this, but has neither `vmap` nor symbolic dimensions nor several
# platforms (https://github.com/jax-ml/jax/issues/40486).
NAME, VERSION = "ftbnn.binary_conv", "1"

Weights = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class _Band:
    """A run of neighbouring groups of one width: convolved at once, the groups being an axis."""

    start: int
    groups: int
    in_features: int
    out_features: int


@dataclasses.dataclass(frozen=True)
class PackedConv:
    """A binary convolution of fixed geometry: packs kernels beforehand, then convolves activations.

    The packed counterpart of `ops.binary.binary_conv2d`: the same integers.

    Attributes:
      in_features: input channels of each group.
      out_features: output channels of each group.
      form: "xnor" where an input that is no positive number counts as -1; "and" where no input is
        negative; "ternary" for any input.
      kernel_size: height and width of the kernels.
      strides: steps between windows, down and across.
      padding: positions of 0 added after binarisation: above and below, then left and right.
      dilation: steps between the positions that a window holds, down and across.
      counting: "words" counts the bits of every word; "adders" first sums words, bit by bit, in a tree
        of carry-save adders; "" for what suits this machine. The integers are the same.
    """

    in_features: tuple[int, ...]
    out_features: tuple[int, ...]
    form: str = "ternary"
    kernel_size: Pair = (3, 3)
    strides: Pair = (1, 1)
    padding: Padding = ((1, 1), (1, 1))
    dilation: Pair = (1, 1)
    counting: str = ""

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r}: must be one of {', '.join(FORMS)}")
        if self.counting not in ("", *counting.COUNTINGS):
            raise ValueError(
                f"counting={self.counting!r}: must be one of {', '.join(counting.COUNTINGS)}"
            )
        if len(self.in_features) != len(self.out_features):
            raise ValueError(f"{len(self.in_features)} groups in, {len(self.out_features)} groups out")
        for name in ("in_features", "out_features", "kernel_size", "strides", "dilation"):
            if min(getattr(self, name), default=0) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1 each")
        if min(map(min, self.padding)) < 0:
            raise ValueError(f"padding={self.padding}: must not be negative")

    def output_shape(self, height: int, width: int) -> Pair:
        """Returns height and width of the output for an input's.

        Raises:
          ValueError: a window is larger than the padded input.
        """
        axes = ((height, width), self.kernel_size, self.strides, self.padding, self.dilation)
        found = tuple(output_size(*axis) for axis in zip(*axes, strict=True))
        if min(found) < 1:
            raise ValueError(f"{self}: a window is larger than an input of {height} x {width} positions")
        return found

    def prepare(self, kernels: Sequence[np.ndarray], height: int, width: int) -> Weights:
        """Packs kernels for inputs of one size.

        Args:
          kernels: booleans `[KH, KW, I_g, O_g]`, one array a group, True for a weight of +1.
          height: of the inputs.
          width: of the inputs.

        Returns:
          One entry a run of groups of equal width: `words`, uint32 `[words of a window, groups, O_g]`,
          and but for "and" `border`, int32 `[H', W', groups, O_g]`: what the sum of a window without any
          bit set would have to be for the border to come out right. An axis along which it is always the
          same, as it is without padding, has length 1.

        Raises:
          ValueError: a kernel has another shape, or a window is larger than the padded input.
        """
        expected = [
            (*self.kernel_size, *widths)
            for widths in zip(self.in_features, self.out_features, strict=True)
        ]
        if [kernel.shape for kernel in kernels] != expected:
            raise ValueError(f"kernels of shapes {[k.shape for k in kernels]}: must be {expected}")
        prepared = []
        first = 0
        for band in self._bands():
            stacked = np.stack(kernels[first : first + band.groups])
            first += band.groups
            entry = {"words": pack_kernels(stacked)}
            if self.form != "and":
                entry["border"] = self._border(stacked, height, width)
            prepared.append(entry)
        return prepared

    def __call__(self, weights: Weights, x: jax.Array) -> jax.Array:
        """Binarises and convolves.

        In StableHLO this is a call of a function `NAME`, with the fields as the call's attributes.

        Args:
          weights: from `prepare`.
          x: real activations `[N, H, W, sum(in_features)]`.

        Returns:
          int32 `[N, H', W', sum(out_features)]`.
        """
        # How bits are counted does not change the integers, so it is no attribute.
        attributes = {name: str(value) for name, value in vars(self).items() if name != "counting"}
        return set_xla_metadata(_named(self, weights, x), version=VERSION, **attributes)

    def _sums(self, weights: Weights, x: jax.Array) -> jax.Array:
        outputs = []
        for band, entry in zip(self._bands(), weights, strict=True):
            part = x[..., band.start : band.start + band.groups * band.in_features]
            part = part.reshape(*x.shape[:-1], band.groups, band.in_features)
            sums = self._convolve(band, entry, part)
            outputs.append(sums.reshape(*sums.shape[:-2], -1))
        if len(outputs) == 1:
            return outputs[0]
        return jnp.concatenate(outputs, axis=-1)

    def _bands(self) -> list[_Band]:
        bands: list[_Band] = []
        for start, i, o in zip(
            np.cumsum((0, *self.in_features)).tolist(), self.in_features, self.out_features, strict=False
        ):
            if bands and (bands[-1].in_features, bands[-1].out_features) == (i, o):
                bands[-1] = dataclasses.replace(bands[-1], groups=bands[-1].groups + 1)
            else:
                bands.append(_Band(start, 1, i, o))
        return bands

    def _border(self, kernels: np.ndarray, height: int, width: int) -> np.ndarray:
        """Returns what sums start from, so that padding, whose zero bits count as -1, adds nothing."""

        def inside(axis: int, length: int, count: int) -> np.ndarray:
            """Returns which taps of windows lie on the input, `[count, kernel_size[axis]]`."""
            first = np.arange(count)[:, None] * self.strides[axis] - self.padding[axis][0]
            position = first + np.arange(self.kernel_size[axis]) * self.dilation[axis]
            found = (position >= 0) & (position < length)
            return found[:1] if np.all(found == found[0]) else found

        lengths = (height, width)
        rows, columns = map(inside, range(2), lengths, self.output_shape(*lengths))
        valid = rows[:, None, :, None] & columns[None, :, None, :]
        valid = valid.reshape(*valid.shape[:2], -1).astype(np.int64)  # [H', W', KH * KW]
        groups, features = kernels.shape[0], kernels.shape[3]
        positive = kernels.sum(axis=3, dtype=np.int64).reshape(groups, valid.shape[2], -1)
        positive = np.transpose(positive, (1, 0, 2))  # [KH * KW, groups, out]
        counted = np.tensordot(1 - valid, positive, axes=1)
        return (valid.sum(-1)[..., None, None] * features + 2 * counted).astype(np.int32)

    def _convolve(self, band: _Band, weights: dict[str, Any], x: jax.Array) -> jax.Array:
        """`[N, H, W, groups, I]` to int32 `[N, H', W', groups, O]`."""
        edges = ((0, 0), *self.padding, (0, 0), (0, 0))
        # Padding what is packed here costs nothing; padding words is a pass over them.
        words = bitpack.pack_channels(quantizers.is_positive(jnp.pad(x, edges)))
        gathered = self._windows(band, words)
        if self.form == "xnor":
            return _materialized(lambda operand: self._xnor(*operand), (weights, gathered))
        if self.form == "and":
            own = windows.own_bits(words, self._geometry)
            return _materialized(lambda operand: self._and(*operand), (weights, gathered, own))
        nonzero = bitpack.pack_channels(quantizers.is_positive(jnp.abs(x)))
        full = bitpack.pack_rows(np.ones(band.in_features, bool))
        # Hardly any value is exactly 0 behind an FPReLU: then fewer words do.
        return lax.cond(
            jnp.all(nonzero == full),
            lambda operand: self._xnor(*operand[:2]),
            lambda operand: self._ternary(band, operand[0], operand[1], jnp.pad(operand[2], edges)),
            (weights, gathered, nonzero),
        )

    @property
    def _geometry(self) -> windows.Geometry:
        return windows.Geometry(self.kernel_size, self.strides, self.dilation)

    def _windows(self, band: _Band, words: jax.Array) -> Windows:
        return windows.gather(words, band.in_features, self._geometry)

    def _accumulate(self, *args: Any, **kwargs: Any) -> jax.Array:
        return counting.accumulate(self.counting or counting.counting_here(), *args, **kwargs)

    def _xnor(self, weights: dict[str, Any], positive: Windows) -> jax.Array:
        start, kernel = weights["border"], weights["words"]
        return self._accumulate(lambda w, a: a ^ w, kernel, [positive], start, factor=-2)

    def _and(self, weights: dict[str, Any], positive: Windows, own: jax.Array) -> jax.Array:
        kernel = weights["words"]
        return self._accumulate(lambda w, a: a & w, kernel, [positive], -own, factor=2)

    def _ternary(
        self, band: _Band, weights: dict[str, Any], positive: Windows, nonzero: jax.Array
    ) -> jax.Array:
        def sums(operand):
            weights, own, *gathered = operand
            kernel = weights["words"]
            return self._accumulate(lambda w, a, m: m & (a ^ w), kernel, gathered, own, factor=-2)

        own = windows.own_bits(nonzero, self._geometry)
        return _materialized(sums, (weights, own, positive, self._windows(band, nonzero)))


def _sums(conv: PackedConv, weights: Weights, x: jax.Array) -> jax.Array:
    return conv._sums(weights, x)


# A function's name is the one that it has in StableHLO.
_sums.__name__ = NAME
_named = jax.jit(_sums, static_argnums=0)


def _materialized(function: Callable[[Any], Any], operand: Any) -> Any:
    """Returns `function(operand)`, with operand and result computed once and kept in memory.

    Left to itself the compiler gathers windows anew for every output channel, computes the sums again
    for everything that reads them, one by one where groups and outputs are merged into one axis, and
    it drops `lax.optimization_barrier` before it decides that. It does not look into a conditional
    whose condition it cannot work out; this one always holds.
    """
    first = next(leaf for leaf in jax.tree.leaves(operand) if leaf.dtype == jnp.uint32)
    always = lax.population_count(first[(0,) * first.ndim]) <= bitpack.WORD_BITS
    shapes = jax.eval_shape(function, operand)
    nothing = lambda _: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)  # noqa: E731
    return lax.cond(always, function, nothing, operand)


def pack_kernels(positive: np.ndarray) -> np.ndarray:
    """Packs booleans `[groups, KH, KW, I, O]` into uint32 `[words of a window, groups, O]`.

    `windows` says in which order a window's bits stand.
    """
    groups, _, _, features, outputs = positive.shape
    bits = np.transpose(positive, (4, 0, 1, 2, 3)).reshape(outputs, groups, -1, features)
    whole = features - features % bitpack.WORD_BITS
    parts = [
        bits[..., :whole].reshape(outputs, groups, -1),
        bits[..., whole:].reshape(outputs, groups, -1),
    ]
    words = np.concatenate([bitpack.pack_rows(part) for part in parts], axis=-1)
    return np.ascontiguousarray(np.transpose(words, (2, 1, 0)))
