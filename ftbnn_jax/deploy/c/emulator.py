"""Computes what the C program computes, bit by bit, in numpy.

As in `kernels/ftbnn_layers.c`: the layers, and in each the order in which numbers are added. Integers of
binary convolutions are the packed runtime's.
"""

import dataclasses
import functools

import numpy as np

from ftbnn_jax.deploy.c import schedule
from ftbnn_jax.deploy.c.arithmetic import NORM, Arithmetic
from ftbnn_jax.nn.spec import BinaryConvPlan

# Sums that are taken side by side: as many as stay in a processor's cache.
_SUMS_AT_ONCE = 2**16


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a batch of N images has given.

    Values have names: `stem/pixels`, `stem/bn`, `stem/output`; in a block `bn`, `shortcut` (the mean),
    `shortcut_bn`, `sum` (with the shortcut) and `output`; `mean`, `logits`. Sums of products have that
    of their kernel.

    Attributes:
      logits: float32, or int32 in fixed point, `[N, classes]`.
      records: input, float32 or int64 `[N, H, W, I]`, and integers, int32, of each binary convolution.
      largest: the largest magnitude of each value by channel, `[N, C]`.
      outside: the images on which a value left its range, or is not finite: booleans `[N]`.
    """

    logits: np.ndarray
    records: list[tuple[np.ndarray, np.ndarray]]
    largest: dict[str, np.ndarray]
    outside: dict[str, np.ndarray]

    def any_outside(self) -> np.ndarray:
        """Returns the images on which any value left its range, booleans `[N]`."""
        return np.any(list(self.outside.values()), axis=0)


class Emulator:
    """The C program of a network.

    Args:
      network: its layers.
      arithmetic: between the binary convolutions.
    """

    def __init__(self, network: schedule.Network, arithmetic: Arithmetic):
        self._network = network
        self._arithmetic = arithmetic
        self._largest: dict[str, np.ndarray] = {}
        self._outside: dict[str, np.ndarray] = {}

    def trace(self, images: np.ndarray) -> Trace:
        """Runs a batch, uint8 `[N, image_size, image_size, channels]`."""
        self._largest, self._outside = {}, {}
        # A number that leaves the range of float32 is reported by name, and what follows from it.
        with np.errstate(all="ignore"):
            logits, records = self._run(images)
        return Trace(logits, records, self._largest, self._outside)

    def _run(self, images):
        x = self._stem(images)
        records = []
        for block in self._network.blocks:
            plan = block.plan
            shortcut = self._shortcut(plan, x)
            if plan.shortcut == "duplicate":
                x = np.concatenate([x, x], axis=-1)
            # A float32 has too few bits for an int32, but not for its sign.
            signs = x if x.dtype == np.float32 else np.sign(x).astype(np.float32)
            sums = block.conv.integers(signs)
            records.append((x, sums))
            y = self._norm(f"{plan.name}/bn", sums.astype(self._arithmetic.dtype))
            if shortcut is not None:
                y = self._value(f"{plan.name}/sum", y + shortcut)
            x = self._activation(plan.name, plan.activation, y)
        positions = x.reshape(len(x), -1, x.shape[-1]).swapaxes(0, 1)
        mean = self._value("mean", self._arithmetic.mean(_total(positions), len(positions)))
        logits = self._arithmetic.normalize("head", self._matmul("head/kernel", mean), ("scale", "bias"))
        logits = self._value("logits", logits)
        return logits.astype(np.int32 if logits.dtype == np.int64 else np.float32), records

    def _stem(self, images):
        spec, tensors = self._network.described.spec, self._arithmetic.tensors
        pixels = tensors["stem/pixels"].astype(self._arithmetic.dtype)
        x = np.stack([pixels[c][images[..., c]] for c in range(len(pixels))], axis=-1)
        x = self._value("stem/pixels", x)
        size, edge = spec.stem_kernel, spec.stem_kernel // 2
        padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
        windows = windows[:, :: spec.stem_stride, :: spec.stem_stride].transpose(0, 1, 2, 4, 5, 3)
        x = self._matmul("stem/conv/kernel", windows)
        x = self._activation("stem", spec.stem_activation, self._norm("stem/bn", x))
        if spec.stem_pool:
            x = _windows(x, 3, 1, self._arithmetic.limits[0]).max(0)
        return x

    def _shortcut(self, plan: BinaryConvPlan, x):
        if plan.shortcut == "none":
            return None
        if plan.shortcut == "identity":
            return x
        name = f"{plan.name}/shortcut"
        if plan.shortcut == "duplicate":
            mean = self._value(name, self._arithmetic.mean(_total(_windows(x, 3, 1, 0)), 9))
            return np.concatenate([mean, mean], axis=-1)
        count = _windows(np.ones_like(x[:1, ..., :1]), 2, 0, 0).sum(0)
        mean = self._value(name, self._arithmetic.mean(_total(_windows(x, 2, 0, 0)), count))
        return self._norm(f"{name}_bn", self._matmul(f"{name}_conv/kernel", mean))

    def _matmul(self, name, x):
        """Multiplies values `[..., I]`, or windows `[N, H, W, K, K, I]`, with a kernel."""
        kernel = self._arithmetic.tensors[name].astype(self._arithmetic.dtype)
        kernel = kernel.reshape(-1, kernel.shape[-1])
        # Windows overlap: those of one image at a time are copied.
        parts = x if x.ndim == 6 else x[None]
        sums = np.concatenate([ordered_sums(part.reshape(-1, len(kernel)), kernel) for part in parts])
        lead = x.shape[:3] if x.ndim == 6 else x.shape[:-1]
        return self._value(name, self._arithmetic.from_sum(name, sums.reshape(*lead, -1)))

    def _norm(self, name, x, parts=NORM):
        return self._value(name, self._arithmetic.normalize(name, x, parts))

    def _activation(self, name, kind, x):
        if kind == "relu":
            x = np.where(x > 0, x, np.zeros_like(x))
        elif kind != "none":
            positive = x if kind == "prelu" else self._arithmetic.scale(name, "positive_slope", x)
            x = np.where(x > 0, positive, self._arithmetic.scale(name, "negative_slope", x))
        return self._value(f"{name}/output", x)

    def _value(self, name, x):
        """Notes how large a value is, and keeps it within its range."""
        axes = tuple(range(1, x.ndim - 1))
        least, most = x.min(axes), x.max(axes)
        self._largest[name] = np.maximum(-least, most)
        low, high = self._arithmetic.limits
        # NaN is within no limits.
        self._outside[name] = ~((least >= low) & (most <= high)).all(-1)
        clipped = self._outside[name].any() and x.dtype == np.int64
        return np.clip(x, low, high) if clipped else x


def ordered_sums(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Returns `x @ kernel`, `[P, I]` with `[I, O]`; each sum begins with 0 and adds term after term."""
    sums = np.empty((len(x), kernel.shape[1]), x.dtype)
    step = max(1, _SUMS_AT_ONCE // kernel.shape[1])
    for start in range(0, len(x), step):
        terms = np.ascontiguousarray(x[start : start + step].T)
        total = np.zeros((kernel.shape[1], terms.shape[1]), x.dtype)
        product = np.empty_like(total)
        for term, weights in zip(terms, kernel, strict=True):
            np.multiply(weights[:, None], term, out=product)
            total += product
        sums[start : start + step] = total.T
    return sums


def _total(parts: np.ndarray) -> np.ndarray:
    """Adds arrays up in their order, the first one to 0."""
    return functools.reduce(np.add, parts, np.zeros_like(parts[0]))


def _windows(x: np.ndarray, size: int, padding: int, outside: float) -> np.ndarray:
    """Returns the `size * size` values of every window of stride 2: `[size * size, N, H', W', C]`.

    H' is `ceil(H / 2)`; the input is padded with `outside`, by `padding` at the start and at the end as
    needed.
    """
    padded = np.pad(x, ((0, 0), (padding, 2), (padding, 2), (0, 0)), constant_values=outside)
    rows, columns = (-(-n // 2) for n in x.shape[1:3])
    return np.stack(
        [
            padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
            for i in range(size)
            for j in range(size)
        ]
    )
