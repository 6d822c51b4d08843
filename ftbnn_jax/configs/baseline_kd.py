"""FTBNN baseline, multi-step training with distillation, on ImageNet: published top-1 63.2% (Table 1).

    python -m ftbnn_jax.main --config=configs/resnet18_fp.py --workdir=TEACHER
    python -m ftbnn_jax.main --config=configs/baseline_kd.py --workdir=DIR --config.teacher=TEACHER

Appendix C: first real weights with tanh in the place of the activations' sign, then the sign with real
weights, then both binary. The last two learn from the full-precision net: its outputs are the soft
labels of the cross-entropy, alone, beside the attention maps. The paper gives 75 epochs for each of the
last two, and neither epochs for the first nor rates nor the weight of the attention maps: these and the
weight decay are Real-to-Binary's, as larq-zoo has them. A stage's fields are overridden as
`--config.stages.binary.num_epochs=10`; with `--config.label_weight=1` they learn from labels as well.

With `:cifar10` after the file's name the net of configs/cifar10.py, six epochs in all, beside the
teacher of `configs/resnet18_fp.py:cifar10`.
"""

from ftbnn_jax import config
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures

_TANH = {"binary_activations": False, "binary_weights": False}
_SIGN = {"binary_activations": True, "binary_weights": False}
_BINARY = {"binary_activations": True, "binary_weights": True}

SOFT_LABELS = {"label_weight": 0.0, "teacher_weight": 1.0}


def stages(epochs, rates, last_weight_decay):
    """Returns the three stages, each with its epochs and its learning rate."""
    found = {
        "tanh": {"start_from": "", "teacher": "", "model": _TANH},
        "sign": {"start_from": "tanh", "model": _SIGN},
        "binary": {
            "start_from": "sign",
            "model": _BINARY,
            "weight_decay": last_weight_decay,
        },
    }
    for stage, num_epochs, rate in zip(found.values(), epochs, rates, strict=True):
        stage |= {"num_epochs": num_epochs, "learning_rate": rate}
    return found


def get_config(dataset="imagenet2012"):
    if dataset == "imagenet2012":
        return config.make(
            architectures.baseline(),
            schedule="multistep",
            schedule_boundaries=(40 / 75, 60 / 75, 70 / 75),
            teacher="runs/resnet18_fp",
            **SOFT_LABELS,
            stages=stages((75, 75, 75), (1e-3, 1e-3, 2e-4), 0.0),
        )
    if dataset != "cifar10":
        raise UserError(f"dataset={dataset!r}: there are imagenet2012 and cifar10")
    return config.make(
        architectures.small(blocks=(2, 2, 2), width=32, stem_stride=2),
        **config.CIFAR10,
        teacher="runs/resnet18_fp_cifar10",
        **SOFT_LABELS,
        stages=stages((1, 2, 3), (0.002, 0.002, 0.005), 1e-5),
    )
