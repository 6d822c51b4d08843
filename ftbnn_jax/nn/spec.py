"""What a network is and how it is trained, as frozen data: the fields `config.model` of an experiment.

An `Architecture` is all that decides what a trained network computes; a `ResNetSpec` adds what matters
in training alone. Both the training graph (`nn.resnet`) and the packed runtime (`deploy.runtime`) are
built from the plan that `Architecture.plan` returns, so there is one description of the structure. This
module needs neither flax nor an accelerator.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Self

from ftbnn_jax import fields
from ftbnn_jax.errors import UserError
from ftbnn_jax.fields import Range
from ftbnn_jax.nn import strategies
from ftbnn_jax.nn.plan import BOTTLENECK_RATIO, BinaryConvPlan, RealBlockPlan

ACTIVATIONS = ("none", "relu", "hardtanh", "prelu", "fprelu")
DOWNSAMPLES = ("conv", "duplicate")
SIGNS = ("three_valued", "two_valued")
BLOCKS = ("binary", "real", "bottleneck")
REAL_ACTIVATIONS = ("tanh", "hardtanh", "identity")
HEADS = ("mean", "flatten")
RUNNING_VARIANCES = ("unbiased", "biased")
REAL_INITS = ("fan_in_uniform", "he_normal")

# No machine could hold a network of more channels. Sums of so many signs are exact in float32.
_MOST_FEATURES = 2**16
_COUNT = Range(1, _MOST_FEATURES)
_SLOPES = 3
_ALLOWED = {
    "blocks": Range(1, 1000, longest=10),
    "width": _COUNT,
    "groups": _COUNT,
    "stem_features": _COUNT,
    # XLA takes minutes to compile much larger ones.
    "stem_kernel": Range(1, 31),
    "stem_stride": Range(1, 99),
    "stem_activation": ACTIVATIONS,
    "downsample": DOWNSAMPLES,
    "activation": ACTIVATIONS,
    "stage_end_activation": ACTIVATIONS,
    "sign": SIGNS,
    "activation_gradient": strategies.GRADIENTS,
    "weight_gradient": strategies.GRADIENTS,
    "scaling": strategies.SCALINGS,
    "ternary": strategies.TERNARIES,
    "shortcut_span": Range(1, 2),
    "real_activations": REAL_ACTIVATIONS,
    "head": HEADS,
    "block": BLOCKS,
    "ste_bound": fields.POSITIVE,
    "slope_start": Range(longest=_SLOPES),
    "batch_norm_momentum": fields.SHARE,
    "running_variance": RUNNING_VARIANCES,
    "real_init": REAL_INITS,
    "batch_norm_epsilon": fields.POSITIVE,
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A residual network: stem, optional bridge, stages of blocks, classifier.

    A binary block is `y = act(BN(bconv(sign(x))) + shortcut(x))` (Fig. 1b), a real one
    `y = act(BN(conv(act(BN(conv(x))))) + shortcut(x))` (He et al., 2016). Stage `s` (from 0) has
    `2**s * width` channels; the first block of every later stage halves the resolution.

    Attributes:
      blocks: blocks in each stage.
      width: channels of the first stage.
      groups: groups of each binary convolution but the bridge; uneven where they do not divide the
        channels. A "duplicate" reduction block takes at least 2 (Fig. 4e).
      stem_features: channels after the real stem convolution.
      stem_kernel: its size.
      stem_stride: its stride.
      stem_activation: after its batch norm, one of `ACTIVATIONS`.
      stem_pool: whether a 3x3 max pool of stride 2 ends the stem.
      bridge: whether a dense binary convolution leads from the stem's channels to `width` (Fig. 4c).
      downsample: shortcut of the reduction blocks, "conv" (baseline) or "duplicate" (derived nets).
      activation: after every block that does not end a stage, and after the bridge.
      stage_end_activation: after the last block of each stage.
      sign: "three_valued" keeps an exact 0 among activations; "two_valued" maps it to -1 wherever the
        input is not the output of a ReLU (Eq. 2).
      scaling: what the output of each binary convolution is multiplied with, one of
        `strategies.SCALINGS`.
      binary_activations: False puts `real_activations` in the place of the activations' sign, for a
        first step of multi-step training; such a network cannot be packed.
      real_activations: "tanh" (Appendix C), "hardtanh" (Liu et al., 2018), or "identity" for a network
        without any non-linearity (Figure 2).
      binary_weights: False takes the latent weights as they are, likewise.
      weight_balance: whether weights are standardised in each output channel before their signs are
        taken (IR-Net).
      ternary: BinaryDuo's activations, one of `strategies.TERNARIES`; "none" for plain signs.
      shortcut_span: binary convolutions that a shortcut spans: 1, the double skips of Liu et al. (2018),
        or 2, as He et al. (2016) have it.
      head: what the classifier reads, "mean" (of each channel over all positions) or "flatten" (2x2
        means, every position by itself; Figure 2's net).
      block: "binary" (one binary convolution to a shortcut), or in full precision "real" (two real ones)
        or "bottleneck" (three, and stages of four times as many channels).
      batch_norm_epsilon: added to the variance.

    Raises:
      UserError: a field has a value that cannot be built; the message names it.
    """

    blocks: tuple[int, ...] = (4, 4, 4, 4)
    width: int = 64
    groups: int = 1
    stem_features: int = 64
    stem_kernel: int = 7
    stem_stride: int = 2
    stem_activation: str = "none"
    stem_pool: bool = True
    bridge: bool = False
    downsample: str = "conv"
    activation: str = "fprelu"
    stage_end_activation: str = "relu"
    sign: str = "three_valued"
    scaling: str = "none"
    binary_activations: bool = True
    real_activations: str = "tanh"
    binary_weights: bool = True
    weight_balance: bool = False
    ternary: str = "none"
    shortcut_span: int = 1
    head: str = "mean"
    block: str = "binary"
    batch_norm_epsilon: float = 1e-5

    def __post_init__(self):
        fields.check("model.", self, _ALLOWED)
        if self.stem_kernel % 2 == 0:
            raise UserError("must be odd and positive", f"model.stem_kernel={self.stem_kernel}")
        if not self.bridge and self.stem_features != self.width:
            raise UserError(
                f"without a bridge the stem must give model.width={self.width} channels",
                f"model.stem_features={self.stem_features}",
            )
        strategies.check(self)
        if odd := [count for count in self.blocks if count % self.shortcut_span]:
            raise UserError(
                f"shortcuts span {self.shortcut_span} of its convolutions, and {odd[0]} is odd",
                f"model.blocks={self.blocks}",
            )
        if self.block == "binary":
            narrowest = min(min(p.conv_in_features, p.features) for p in self._blocks_plan())
            if self.groups > narrowest:
                raise UserError(
                    f"larger than the {narrowest} channels of the narrowest binary convolution; 1 to "
                    f"{narrowest} would do",
                    f"model.groups={self.groups}",
                )
        if self.features > _MOST_FEATURES:
            raise UserError(
                f"gives the last stage {self.features} channels; at most {_MOST_FEATURES} would do",
                f"model.width={self.width}",
            )

    @property
    def features(self) -> int:
        """Channels of the last block."""
        return self._stage_features(len(self.blocks) - 1)

    def classifier_inputs(self, image_size: int) -> int:
        """Returns how many numbers the classifier reads of an image of this height and width."""
        if self.head == "mean":
            return self.features
        # Every stage but the first halves the resolution, and so does the head; all round up.
        halvings = self.stem_pool + len(self.blocks)
        size = -(-image_size // (self.stem_stride * 2**halvings))
        return size**2 * self.features

    def plan(self) -> tuple[BinaryConvPlan, ...]:
        """Returns every binary convolution of the network in order, the bridge first."""
        return (*self._bridge_plan(), *self._blocks_plan()) if self.block == "binary" else ()

    def real_plan(self) -> tuple[RealBlockPlan, ...]:
        """Returns every block of real convolutions in order; there are none in a binary network."""
        if self.block == "binary":
            return ()
        plan, in_features = [], self.width
        for name, features, reduction, activation in self._block_places():
            plan.append(
                RealBlockPlan(
                    name=name,
                    features=features,
                    stride=2 if reduction else 1,
                    shortcut="identity" if features == in_features else "conv",
                    inner_activation=self.activation,
                    activation=activation,
                    bottleneck=self.block == "bottleneck",
                )
            )
            in_features = features
        return tuple(plan)

    def two_valued_sign(self, conv: BinaryConvPlan) -> bool:
        """Whether exact zeros in the input of `conv` become -1 before the convolution."""
        return self.ternary == "decoupled" or (self.sign == "two_valued" and not conv.after_relu)

    @property
    def _thresholds(self) -> tuple[float, ...]:
        threshold = strategies.TERNARY_THRESHOLD
        return (threshold, -threshold) if self.ternary == "decoupled" else (0.0,)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values that JSON and ConfigDict can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds one from `to_dict`'s result, from JSON's lists or from a ConfigDict's items.

        Raises:
          UserError: a field is unknown or has a value that cannot be built.
        """
        if not isinstance(values, Mapping):
            raise UserError("must be the fields of a network, by name", f"model={fields.shown(values)}")
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise UserError(f"no such field; there are {', '.join(sorted(known))}", f"model.{name}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    def _bridge_plan(self) -> tuple[BinaryConvPlan, ...]:
        if not self.bridge:
            return ()
        after_relu = self.stem_activation == "relu"
        return (
            BinaryConvPlan(
                *("bridge", self.stem_features, self.width, 1, 1, "none", self.activation, after_relu),
                thresholds=self._thresholds,
            ),
        )

    def _block_places(self) -> Iterator[tuple[str, int, bool, str]]:
        """Yields name, channels, whether it halves the resolution, and activation of each block."""
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                activation = self.stage_end_activation if index == count - 1 else self.activation
                reduction = stage > 0 and index == 0
                yield f"block{stage + 1}_{index + 1}", self._stage_features(stage), reduction, activation

    def _stage_features(self, stage: int) -> int:
        return self.width * 2**stage * (BOTTLENECK_RATIO if self.block == "bottleneck" else 1)

    def _blocks_plan(self) -> tuple[BinaryConvPlan, ...]:
        plan = []
        in_features = self.width
        previous = self.activation if self.bridge else self.stem_activation
        for number, (name, features, reduction, activation) in enumerate(self._block_places(), 1):
            # A shortcut is that of the last convolution that it spans, and reduces as the first does.
            last = number % self.shortcut_span == 0
            reduces = reduction if self.shortcut_span == 1 else last and plan[-1].stride == 2
            shortcut = (self.downsample if reduces else "identity") if last else "none"
            plan.append(
                BinaryConvPlan(
                    name=name,
                    in_features=in_features,
                    features=features,
                    groups=max(2, self.groups) if shortcut == "duplicate" else self.groups,
                    stride=2 if reduction else 1,
                    shortcut=shortcut,
                    activation=activation,
                    after_relu=previous == "relu",
                    shortcut_span=self.shortcut_span,
                    thresholds=self._thresholds,
                )
            )
            in_features, previous = features, activation
        return tuple(plan)


@dataclasses.dataclass(frozen=True)
class ResNetSpec(Architecture):
    """A network and how it is trained: with other values of its own fields it is the same network.

    Attributes:
      activation_gradient: of the activations' sign, one of `strategies.GRADIENTS`.
      weight_gradient: of the weights' sign, likewise.
      ste_bound: where the clipped gradients end, inclusive.
      slope_start: where slopes begin: PReLU's, and FPReLU's on the negative and the positive side. The
        paper says 1 of FPReLU (Fig. 3); 0.25 is PyTorch's for PReLU.
      batch_norm_momentum: share of the old running statistics kept in each step.
      running_variance: "unbiased" keeps n / (n - 1) of the variance of a batch's n numbers in the
        running statistics, as PyTorch does, "biased" the variance that the batch was normalised by.
      real_init: how the kernels of real convolutions and the classifier begin. "fan_in_uniform" is
        PyTorch's, even between -1 / sqrt(fan_in) and 1 / sqrt(fan_in), the classifier's bias as well;
        "he_normal" is that of He et al. (2015), the bias 0. The paper does not say.

    Raises:
      UserError: a field, the architecture's among them, has a value that cannot be built.
    """

    activation_gradient: str = "clipped"
    weight_gradient: str = "clipped"
    ste_bound: float = 1.2
    slope_start: tuple[float, ...] = (0.25, 1.0, 1.0)
    batch_norm_momentum: float = 0.9
    running_variance: str = "unbiased"
    real_init: str = "fan_in_uniform"

    def __post_init__(self):
        super().__post_init__()
        if len(self.slope_start) != _SLOPES:
            raise UserError(
                f"must be {_SLOPES} numbers: of PReLU, of FPReLU's negative and of its positive side",
                f"model.slope_start={self.slope_start}",
            )

    @property
    def architecture(self) -> Architecture:
        """The network alone: equal where no other fields differ than those of training."""
        names = [field.name for field in dataclasses.fields(Architecture)]
        return Architecture(**{name: getattr(self, name) for name in names})

    def training(self) -> dict[str, Any]:
        """Returns the fields that are not the architecture's, as `to_dict` does."""
        architecture = self.architecture.to_dict()
        return {name: value for name, value in self.to_dict().items() if name not in architecture}
