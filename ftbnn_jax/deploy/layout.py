"""Which tensors an artifact of a network holds, and what those mean that are no plain float32."""

import math

import numpy as np

from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import strategies
from ftbnn_jax.nn.spec import BinaryConvPlan, ResNetSpec
from ftbnn_jax.ops import binary
from ftbnn_jax.ops.packed import bits as bitpack

FLOAT = np.dtype("<f4")
BITS = np.dtype("<u4")
INT16 = np.dtype("<i2")

_LARGEST = np.iinfo(INT16).max

_SLOPES = {
    "none": (),
    "relu": (),
    "prelu": ("negative_slope",),
    "fprelu": ("negative_slope", "positive_slope"),
}


def kernel_shapes(plan: BinaryConvPlan) -> list[tuple[int, int, int, int]]:
    """Returns `(3, 3, I_g, O_g)` for each group of a binary convolution."""
    ins = binary.group_sizes(plan.conv_in_features, plan.groups)
    outs = binary.group_sizes(plan.features, plan.groups)
    return [(3, 3, i, o) for i, o in zip(ins, outs, strict=True)]


def kernel_bits(plan: BinaryConvPlan) -> int:
    """Returns the number of weights of a binary convolution."""
    return sum(math.prod(shape) for shape in kernel_shapes(plan))


def unpack_kernels(plan: BinaryConvPlan, words: np.ndarray) -> list[np.ndarray]:
    """Returns the kernels in `conv/bits`, booleans `[3, 3, I_g, O_g]`, True for +1, one a group."""
    shapes = kernel_shapes(plan)
    sizes = [math.prod(shape) for shape in shapes]
    bits = np.split(bitpack.unpack_stream(words, sum(sizes)), np.cumsum(sizes)[:-1])
    return [b.reshape(shape) for b, shape in zip(bits, shapes, strict=True)]


def quantize_classifier(kernel: np.ndarray) -> dict[str, np.ndarray]:
    """Returns `head/kernel` and `head/scale`: `kernel`, float32 `[features, classes]`, in 16 bits.

    A class has the scale `max |w| / 32767`; its weights are multiples of that, rounded to the nearest.
    """
    scale = (np.abs(kernel).max(axis=0) / _LARGEST).astype(FLOAT)
    # Where the scale has become subnormal, or 0, a multiple can leave 16 bits.
    multiples = np.rint(kernel / np.maximum(scale, np.finfo(FLOAT).smallest_subnormal))
    kernel = np.clip(multiples, -_LARGEST, _LARGEST).astype(INT16)
    return {"head/kernel": kernel, "head/scale": scale}


def classifier_kernel(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the kernel that `quantize_classifier` stored, float32 `[features, classes]`."""
    return tensors["head/kernel"] * tensors["head/scale"]


def classifier_bound(
    kernel: np.ndarray, bias: np.ndarray, largest: np.ndarray, terms: int
) -> np.ndarray:
    """Returns how far the packed classifier's logits can be from those of its float32 kernel.

    Weights are off by what `quantize_classifier` rounds. Beside that, each of two sums in float32, of n
    numbers in any order, is off by at most `n u / (1 - n u)` of the sum of their absolute values,
    `u = 2**-24` (Higham, *Accuracy and Stability of Numerical Algorithms*, section 4.2).

    Args:
      kernel: float32 `[features, classes]`, as trained.
      bias: float32 `[classes]`.
      largest: `[N, features]`, bounds of the absolute values that the classifier reads: means of the
        absolute values that its input's means are taken of.
      terms: how many numbers are averaged to a feature.

    Returns:
      float64 `[N, classes]`.
    """
    exact, largest = kernel.astype(np.float64), largest.astype(np.float64)
    rounding = np.abs(classifier_kernel(quantize_classifier(kernel)) - exact)
    # A product, a weight's own scale and a division round once each, a bias is one more number.
    count = len(kernel) + terms + 4
    unit = count * 2.0**-24 / (1 - count * 2.0**-24)
    return largest @ rounding + 2 * unit * (largest @ (np.abs(exact) + rounding) + np.abs(bias))


def tensors(
    spec: ResNetSpec, channels: int, num_classes: int, image_size: int
) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Returns dtype and shape of every tensor, by name.

    Args:
      spec: the network.
      channels: of the input images.
      num_classes: number of logits.
      image_size: height and width of the input images.
    """
    found: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}

    def norm(name: str, features: int) -> None:
        for part in ("multiplier", "offset"):
            found[f"{name}/{part}"] = (FLOAT, (features,))

    def activation(name: str, kind: str, features: int) -> None:
        for slope in _SLOPES[kind]:
            found[f"{name}/act/{slope}"] = (FLOAT, (features,))

    k, stem = spec.stem_kernel, spec.stem_features
    found["stem/conv/kernel"] = (FLOAT, (k, k, channels, stem))
    norm("stem/bn", stem)
    activation("stem", spec.stem_activation, stem)
    for plan in spec.plan():
        found[f"{plan.name}/conv/bits"] = (BITS, (bitpack.words_for(kernel_bits(plan)),))
        norm(f"{plan.name}/bn", plan.features)
        activation(plan.name, plan.activation, plan.features)
        if spec.scaling == "real_to_bin":
            ins = plan.conv_in_features
            inner = max(1, ins // strategies.REAL_TO_BIN_REDUCTION)
            found[f"{plan.name}/gate/reduce_kernel"] = (FLOAT, (ins, inner))
            found[f"{plan.name}/gate/expand_kernel"] = (FLOAT, (inner, plan.features))
        if plan.shortcut == "conv":
            found[f"{plan.name}/shortcut_conv/kernel"] = (FLOAT, (1, 1, plan.in_features, plan.features))
            norm(f"{plan.name}/shortcut_bn", plan.features)
    found["head/kernel"] = (INT16, (spec.classifier_inputs(image_size), num_classes))
    found["head/scale"] = (FLOAT, (num_classes,))
    found["head/bias"] = (FLOAT, (num_classes,))
    return found


def require_folded_scaling(spec: ResNetSpec, target: str) -> None:
    """Raises a UserError where a network's scaling factors depend on its input.

    Args:
      spec: the network.
      target: what cannot compute them, to begin the reason with.
    """
    if spec.scaling in strategies.FROM_INPUT:
        foldable = [s for s in strategies.SCALINGS if s not in strategies.FROM_INPUT]
        raise UserError(
            f"model.scaling={spec.scaling!r}: {target} has no factors that depend on the input; "
            f"the packed runtime has; {', '.join(foldable)} would do"
        )
