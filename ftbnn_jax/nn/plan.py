"""The parts that a `ResNetSpec` comes down to, one record each; plain data."""

import dataclasses

# Channels of a bottleneck's output, relative to those of its 3x3 convolution.
BOTTLENECK_RATIO = 4


@dataclasses.dataclass(frozen=True)
class BinaryConvPlan:
    """One binary convolution and the batch norm, shortcut and activation around it.

    Attributes:
      name: name of the flax module, and prefix of the tensors in an artifact.
      in_features: channels of the block's input.
      features: channels of its output.
      groups: groups of the binary convolution.
      stride: of the binary convolution, and of the shortcut.
      shortcut: "identity"; "conv" (2x2 mean, real 1x1 convolution, batch norm); "duplicate" (the
        input twice along channels, 3x3 mean; the convolution reads the duplicated input as well); or
        "none".
      activation: one of `spec.ACTIVATIONS`.
      after_relu: whether the input can only be 0 or positive, so that its signs are 0 and 1.
      shortcut_span: how many convolutions the shortcut spans; with 2 it begins where the block before
        does, and has that one's stride.
      thresholds: what is subtracted from the input before its signs are taken; with several, the
        convolution reads the signs at each of them, one behind the other along the channels.
    """

    name: str
    in_features: int
    features: int
    groups: int
    stride: int
    shortcut: str
    activation: str
    after_relu: bool
    shortcut_span: int = 1
    thresholds: tuple[float, ...] = (0.0,)

    @property
    def conv_in_features(self) -> int:
        """Channels that the binary convolution reads."""
        copies = 2 if self.shortcut == "duplicate" else 1
        return copies * len(self.thresholds) * self.in_features


@dataclasses.dataclass(frozen=True)
class RealBlockPlan:
    """Real convolutions and the shortcut around them (He et al., 2016).

    Two of 3x3, or, as a bottleneck, 1x1 to a quarter of the channels, 3x3, and 1x1 to all of them.

    Attributes:
      name: name of the flax module.
      features: channels of its output.
      stride: of the first 3x3 convolution, and of the shortcut.
      shortcut: "identity", or "conv" (real 1x1 convolution of this stride, batch norm).
      inner_activation: between the convolutions, one of `spec.ACTIVATIONS`.
      activation: after the sum.
      bottleneck: whether it is one.
    """

    name: str
    features: int
    stride: int
    shortcut: str
    inner_activation: str
    activation: str
    bottleneck: bool = False

    def convolutions(self) -> tuple[tuple[int, int, int], ...]:
        """Returns channels, kernel size and stride of each convolution on the main path."""
        if not self.bottleneck:
            return (self.features, 3, self.stride), (self.features, 3, 1)
        inner = self.features // BOTTLENECK_RATIO
        return (inner, 1, 1), (inner, 3, self.stride), (self.features, 1, 1)
