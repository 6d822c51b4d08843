"""The paper's networks, those it compares with, and small ones from the same blocks, as specs."""

import dataclasses
from typing import Any

from ftbnn_jax.errors import UserError
from ftbnn_jax.nn.spec import ResNetSpec

# Width of the first stage by (budget in M, layers) and groups: the widths with which the counting
# rules of the paper give back its Table 4.
DERIVED_WIDTHS = {
    (90, 18): {1: 100, 3: 156, 5: 192, 8: 232},
    (90, 34): {1: 68, 3: 108, 5: 136, 8: 164},
    (135, 18): {1: 128, 3: 198, 5: 248, 8: 304},
    (135, 34): {1: 88, 3: 140, 5: 176, 8: 216},
    (135, 44): {1: 76, 3: 122, 5: 154, 8: 188},
}
# The paper says how many layers; that those of 44 are divided so follows from its operations.
LAYER_BLOCKS = {18: (4, 4, 4, 4), 34: (6, 8, 12, 6), 44: (8, 10, 14, 10)}


def _everywhere(activation: str) -> dict[str, str]:
    return {"activation": activation, "stage_end_activation": activation}


def baseline() -> ResNetSpec:
    """FTBNN ResNet-18, the paper's baseline: 60.2% top-1 at a budget of about 163M (Table 3).

    "A ReLU after every four blocks" is one at the end of each stage, in all depths. What the paper does
    not say is as in Bi-Real Net: no activation behind the stem, a 2x2 average pool and a batch norm
    around the 1x1 convolution of a shortcut.
    """
    return ResNetSpec()


def bireal18() -> ResNetSpec:
    """Bi-Real Net-18 (Liu et al., 2018), the structure that the baseline grew from (Fig. 1a).

    Its weights' gradient ends at 1, as in its own paper, not at the 1.2 of this one.
    """
    return table1("bireal")


def bireal34() -> ResNetSpec:
    """Bi-Real Net-34 (Liu et al., 2018): 62.2% top-1 at a budget of 193M (Table 4)."""
    return dataclasses.replace(bireal18(), blocks=LAYER_BLOCKS[34])


# Methods of Table 1 beside the paper's own, as fields of a 1-bit ResNet-18. Batch norm, shortcut and
# activation follow the convolution in this order everywhere; their signs' gradients end at 1.
TABLE1: dict[str, dict[str, Any]] = {
    # Hubara et al. (2016).
    "bnn": {**_everywhere("hardtanh"), "shortcut_span": 2},
    # Rastegari et al. (2016).
    "xnor_net": {**_everywhere("none"), "shortcut_span": 2, "scaling": "xnor_net"},
    # Bulat & Tzimiropoulos (2019).
    "xnor_net++": {**_everywhere("none"), "shortcut_span": 2, "scaling": "xnor_net++"},
    # Liu et al. (2018).
    "bireal": {
        **_everywhere("none"),
        "activation_gradient": "piecewise_quadratic",
        "scaling": "mean_abs",
    },
    # Qin et al. (2020).
    "ir_net": {
        **_everywhere("hardtanh"),
        "activation_gradient": "evolving",
        "weight_gradient": "evolving",
        "weight_balance": True,
        "scaling": "power_of_two",
    },
    # Kim et al. (2020b), decoupled: 2 * 45 * 45 are about as many weights as 64 * 64.
    "binaryduo": {**_everywhere("none"), "ternary": "decoupled", "width": 45, "stem_features": 45},
    # Martinez et al. (2020), the baseline without factors from the input.
    "real_to_bin": {**_everywhere("prelu"), "stem_activation": "prelu", "scaling": "xnor_net++"},
}


def table1(method: str) -> ResNetSpec:
    """Returns the net of a row of Table 1, one of `TABLE1`.

    Raises:
      UserError: there is no such row.
    """
    if method not in TABLE1:
        raise UserError(f"method={method!r}: Table 1 has {', '.join(TABLE1)} beside the paper's own")
    return ResNetSpec(**TABLE1[method], ste_bound=1.0)


def resnet18() -> ResNetSpec:
    """ResNet-18 in full precision (He et al., 2016): 69.8% top-1 (Table 3)."""
    return ResNetSpec(
        blocks=(2, 2, 2, 2),
        block="real",
        stem_activation="relu",
        activation="relu",
        stage_end_activation="relu",
        real_init="he_normal",
    )


def resnet50() -> ResNetSpec:
    """ResNet-50 in full precision (He et al., 2016), its strides in the 3x3 convolutions."""
    return dataclasses.replace(resnet18(), blocks=(3, 4, 6, 3), block="bottleneck")


def derived(layers: int, groups: int, budget: int = 135) -> ResNetSpec:
    """A binary-purified, grouped net of Table 4.

    The paper prints no widths: `DERIVED_WIDTHS` give back its table. Nor does it say what stands behind
    the bridge: an FPReLU here, without a shortcut.

    Args:
      layers: 18, 34 or 44.
      groups: 1, 3, 5 or 8.
      budget: total budget in M (FLOPs + BOPs / 64), 90 or 135; 44 layers exist at 135 only.

    Raises:
      UserError: the paper has no such net.
    """
    widths = DERIVED_WIDTHS.get((budget, layers))
    if widths is None:
        known = ", ".join(f"{n} layers at {b}" for b, n in sorted(DERIVED_WIDTHS))
        raise UserError(f"budget={budget}: no net of {layers} layers at ~{budget}M; there are {known}")
    if groups not in widths:
        raise UserError(f"groups={groups}: the paper's nets have {', '.join(map(str, widths))} groups")
    return ResNetSpec(
        blocks=LAYER_BLOCKS[layers],
        width=widths[groups],
        groups=groups,
        stem_features=32,
        stem_kernel=3,
        stem_activation="prelu",
        bridge=True,
        downsample="duplicate",
    )


def small(
    blocks: tuple[int, ...], width: int, *, groups: int = 1, stem_stride: int = 1, **fields: Any
) -> ResNetSpec:
    """A net for images of 8x8 to 64x64 pixels: the paper's blocks behind a 3x3 stem without pooling.

    Args:
      blocks: binary convolutions in each stage.
      width: channels of the stem and of the first stage.
      groups: of each binary convolution.
      stem_stride: 2 for a quarter of the work.
      **fields: any further field of `ResNetSpec`.
    """
    return ResNetSpec(
        **{
            "blocks": blocks,
            "width": width,
            "groups": groups,
            "stem_features": width,
            "stem_kernel": 3,
            "stem_stride": stem_stride,
            "stem_pool": False,
            **fields,
        }
    )
