"""The numbers that the paper prints: the one place that holds them."""

import dataclasses
import functools

from ftbnn_jax.nn import architectures
from ftbnn_jax.nn.spec import ResNetSpec

IMAGE_SIZE = 224
NUM_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Row:
    """A net in the left half of Table 4.

    Attributes:
      flops: in M.
      bops: in M.
      params: in M, 32 binary ones counting as one.
      top1_train: accuracy on the training images, %.
      top1: accuracy on the validation images, %.
    """

    flops: float
    bops: float
    params: float
    top1_train: float
    top1: float

    @property
    def total(self) -> float:
        """Total budget in M, 64 BOPs being one FLOP."""
        return self.flops + self.bops / 64


# (budget in M, layers, groups)
TABLE4 = {
    (90, 18, 1): Row(19.0, 4516, 1.66, 61.0, 61.9),
    (90, 18, 3): Row(23.1, 4580, 2.06, 61.6, 61.9),
    (90, 18, 5): Row(25.8, 4301, 2.28, 62.2, 61.9),
    (90, 18, 8): Row(28.7, 3988, 2.55, 61.5, 61.1),
    (90, 34, 1): Row(19.3, 4176, 1.32, 58.8, 61.0),
    (90, 34, 3): Row(23.8, 4005, 1.59, 60.6, 62.0),
    (90, 34, 5): Row(27.0, 3829, 1.79, 61.8, 62.5),
    (90, 34, 8): Row(30.1, 3577, 1.97, 61.9, 62.0),
    (135, 18, 1): Row(21.1, 7399, 2.42, 66.1, 64.8),
    (135, 18, 3): Row(26.2, 7285, 2.88, 66.6, 64.5),
    (135, 18, 5): Row(29.9, 7031, 3.22, 67.2, 64.2),
    (135, 18, 8): Row(34.0, 6717, 3.60, 66.4, 63.4),
    (135, 34, 1): Row(21.6, 6994, 1.99, 63.5, 64.5),
    (135, 34, 3): Row(27.4, 6639, 2.31, 65.8, 65.3),
    (135, 34, 5): Row(31.5, 6412, 2.56, 66.8, 65.5),
    (135, 34, 8): Row(36.0, 6090, 2.83, 67.3, 65.0),
    (135, 44, 1): Row(22.1, 6847, 2.07, 62.4, 63.3),
    (135, 44, 3): Row(28.5, 6512, 2.33, 65.3, 64.8),
    (135, 44, 5): Row(32.9, 6251, 2.55, 66.4, 65.3),
    (135, 44, 8): Row(37.5, 5947, 2.76, 66.9, 65.3),
}

# Right half of Table 4, in M. These nets are counted there as Liu et al. (2018) count: multiply-adds
# alone, nothing doubled (`Budget.total_macs`).
TOTAL_MACS = {
    "baseline": 163.0,
    "xnor_net": 163.0,
    "xnor_net++": 163.0,
    "ir_net": 163.0,
    "bireal18": 163.0,
    "bireal34": 193.0,
}


# Table 1: top-1 accuracy on ImageNet, %, of the rows of `configs/table1.py`.
TABLE1 = {
    "bnn": 42.2,
    "xnor_net": 51.2,
    "xnor_net++": 57.1,
    "bireal_b": 56.4,
    "bireal_a": 56.4,
    "ir_net": 58.1,
    "binaryduo": 60.9,
    "real_to_bin": 60.9,
    "ftbnn": 60.2,
    "ftbnn_kd": 63.2,
}

# Table 3: top-1 and top-5 accuracy on ImageNet, %, of the rows of `configs/ablation.py`.
TABLE3 = {
    "bireal_published": (56.4, 79.5),
    "bireal": (52.3, 75.9),
    "none": (52.5, 76.0),
    "prelu": (58.9, 81.1),
    "fprelu": (59.3, 81.3),
    "relu": (45.9, 70.5),
    "stage_relu": (59.6, 81.4),
    "stage_relu_prelu": (59.7, 81.6),
    "baseline": (60.2, 82.0),
    "full_precision": (69.8, 89.2),
}

# Table 2: learnt slopes of the baseline's FPReLU by block, on the negative and the positive side; mean,
# least and largest. Blocks that are missing end in ReLU.
TABLE2 = {
    "block1_1": ((1.82, 0.48, 4.63), (1.16, 0.63, 2.19)),
    "block1_2": ((0.95, 0.00, 2.69), (0.72, 0.34, 1.72)),
    "block1_3": ((0.87, 0.33, 4.49), (0.75, 0.26, 1.40)),
    "block2_1": ((0.91, 0.54, 2.80), (0.93, 0.56, 2.04)),
    "block2_2": ((0.93, 0.45, 3.16), (0.83, 0.54, 1.70)),
    "block2_3": ((0.81, 0.00, 1.82), (0.86, 0.46, 1.69)),
    "block3_1": ((0.84, 0.47, 2.07), (0.95, 0.61, 1.84)),
    "block3_2": ((0.86, 0.44, 2.85), (0.79, 0.46, 1.51)),
    "block3_3": ((0.76, 0.04, 1.97), (0.78, 0.28, 2.50)),
    "block4_1": ((0.96, 0.54, 2.86), (0.90, 0.14, 2.05)),
    "block4_2": ((1.04, 0.44, 4.66), (0.67, 0.00, 1.44)),
    "block4_3": ((0.68, 0.23, 2.80), (0.95, 0.23, 3.51)),
}

# Figure 2: of the models of `configs/mnist_figure2.py`, test accuracy on MNIST, %, and discrepancy; mean
# and standard deviation of five runs.
FIGURE2_ACCURACY = {"binary": (98.45, 0.16), "prelu": (98.70, 0.07), "relu": (98.83, 0.07)}
FIGURE2_DISCREPANCY = {"binary": (1.04, 0.03), "prelu": (1.66, 0.04), "relu": (2.41, 0.13)}


def derived_name(budget: int, layers: int, groups: int) -> str:
    """Returns the name of a derived net, as the files in `configs/` have it."""
    return f"derived{layers}_g{groups}" + (f":{budget}" if budget != 135 else "")


@functools.cache
def table4_specs() -> dict[ResNetSpec, tuple[int, int, int]]:
    """Returns the nets of Table 4 with their keys in `TABLE4`."""
    return {
        architectures.derived(layers=layers, groups=groups, budget=budget): (budget, layers, groups)
        for budget, layers, groups in TABLE4
    }


def bridge_bops(model: ResNetSpec) -> float:
    """BOPs in M that the published numbers hold for the bridge.

    0 for one group, `9 * 56 * 56 * C * C / ceil(C / 64)` for more, where C is the width of the first
    stage. Found by fitting all 20 rows; it follows from no bridge that the text describes, whose
    `9 * 56 * 56 * 32 * C` is what we count.
    """
    if model.groups == 1:
        return 0.0
    return 9 * 56 * 56 * model.width**2 / -(-model.width // 64) / 1e6


@functools.cache
def total_macs_specs() -> dict[ResNetSpec, str]:
    """Returns the nets of `TOTAL_MACS` with their names."""
    builders = {
        "baseline": architectures.baseline,
        **{name: functools.partial(architectures.table1, name) for name in architectures.TABLE1},
        "bireal18": architectures.bireal18,
        "bireal34": architectures.bireal34,
    }
    return {builders[name](): name for name in TOTAL_MACS}
