"""The rows of Table 1: 1-bit ResNet-18 by the methods that the paper compares itself with, on ImageNet.

    python -m ftbnn_jax.main --config=configs/table1.py:ROW --workdir=DIR
    python -m ftbnn_jax.main --config=configs/table1.py:ROW,cifar10 --workdir=DIR

| ROW | KD, GA, MS, scaling | epochs | published top-1 |
|---|---|---|---|
| bnn | none of them | N/A | 42.2 |
| xnor_net | MS, scaling by both magnitudes | N/A + 58 | 51.2 |
| xnor_net++ | learnt scaling | 80 | 57.1 |
| bireal_b | GA, scaling by mean |w|: configs/bireal18.py | 256 | 56.4 |
| bireal_a | GA, MS, scaling by mean |w| | N/A + 20 | 56.4 |
| ir_net | GA, scaling by powers of two, balanced weights | N/A | 58.1 |
| binaryduo | GA by coupled ternary activations, MS | 120 + 40 | 60.9 |
| real_to_bin | KD, MS, learnt scaling: the baseline of Real-to-Binary | 75 + 75 | 60.9 |
| ftbnn | none of them: configs/baseline.py | 60 | 60.2 |
| ftbnn_kd | KD, MS: configs/baseline_kd.py | 75 + 75 | 63.2 |

KD is distillation, GA gradient approximation, MS several training steps. The paper gives these methods'
names and epochs; their parts are those of their own papers, and everything else (Adam, rates, schedule,
augmentation, the order of a block's parts) is the baseline's, 60 epochs where it says N/A. So the rows
compare methods within one recipe, and are not the published trainings. Steps before the last take hard
tanh for the signs and real weights, but for `real_to_bin` and `ftbnn_kd`, whose stages are Appendix C's;
these two need `--config.teacher=DIR` (configs/resnet18_fp.py).

`binaryduo` trains activations of three values in its first stage, and its second one begins with the
network that these come apart into: two signs for each of them, and as many latent kernels, with which it
gives the same outputs (`nn.decoupling`).

On CIFAR-10 each row is a net of six blocks, 16 channels wide in the first stage (11 for `binaryduo`),
with its epochs in the proportion of 5 to 60.
"""

import dataclasses

from ftbnn_jax import config
from ftbnn_jax.configs import baseline_kd
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures

_REAL = {
    "binary_activations": False,
    "real_activations": "hardtanh",
    "binary_weights": False,
    "activation_gradient": "clipped",
    "weight_gradient": "clipped",
    "weight_balance": False,
    "scaling": "none",
}
_SHAPE = ("blocks", "width", "stem_features", "stem_kernel", "stem_stride", "stem_pool")
# By row: the method among `architectures.TABLE1`, and the epochs of each training step.
_STEPS = {
    "bnn": ("bnn", (60,)),
    "xnor_net": ("xnor_net", (60, 58)),
    "xnor_net++": ("xnor_net++", (80,)),
    "bireal_b": ("bireal", (256,)),
    "bireal_a": ("bireal", (60, 20)),
    "ir_net": ("ir_net", (60,)),
    "binaryduo": ("binaryduo", (120, 40)),
    "real_to_bin": ("real_to_bin", (75, 75, 75)),
}
ROWS = (*_STEPS, "ftbnn", "ftbnn_kd")


def _recipe(row, model, epochs):
    """Returns the epochs of a row, or its stages where it has several."""
    if len(epochs) == 1:
        return {"num_epochs": epochs[0]}
    if row == "real_to_bin":
        stages = baseline_kd.stages(epochs, (1e-3, 1e-3, 2e-4), 0.0)
        return {"stages": stages, **baseline_kd.SOFT_LABELS, "teacher": "runs/resnet18_fp"}
    first, last = ("coupled", "decoupled") if row == "binaryduo" else ("real", "binary")
    fields = {"ternary": "coupled"} if row == "binaryduo" else _REAL
    stages = {
        first: {"start_from": "", "num_epochs": epochs[0], "model": fields},
        last: {
            "start_from": first,
            "num_epochs": epochs[1],
            "model": {name: getattr(model, name) for name in fields},
        },
    }
    return {"stages": stages}


def get_config(row="ftbnn"):
    row, _, dataset = row.partition(",")
    if row not in ROWS:
        raise UserError(f"row={row!r}: Table 1 has the rows {', '.join(ROWS)}")
    if dataset not in ("", "imagenet2012", "cifar10"):
        raise UserError(f"dataset={dataset!r}: there are imagenet2012 and cifar10")
    small = dataset == "cifar10"
    if row == "ftbnn_kd":
        return baseline_kd.get_config("cifar10" if small else "imagenet2012")
    method, epochs = _STEPS.get(row, ("", (60,)))
    model = architectures.table1(method) if method else architectures.baseline()
    values = {"schedule": "multistep"}
    if small:
        width = model.width // 4
        shape = architectures.small((2, 2, 2), width, stem_stride=2)
        shape = {name: getattr(shape, name) for name in _SHAPE}
        model = dataclasses.replace(model, **shape)
        epochs = tuple(max(1, round(number / 12)) for number in epochs)
        values = {**config.CIFAR10, **values}
    return config.make(model, **{**values, **_recipe(row, model, epochs)})
