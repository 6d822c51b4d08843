"""The rows of Table 3: which non-linear modules a 1-bit ResNet-18 needs, on ImageNet.

    python -m ftbnn_jax.main --config=configs/ablation.py:ROW --workdir=DIR

| ROW | network | published top-1 / top-5 |
|---|---|---|
| bireal_published | Bi-Real Net as its authors trained it: configs/bireal18.py | 56.4 / 79.5 |
| bireal | Bi-Real Net with the plain recipe | 52.3 / 75.9 |
| none | no explicit non-linear modules | 52.5 / 76.0 |
| prelu | PReLU everywhere | 58.9 / 81.1 |
| fprelu | FPReLU everywhere | 59.3 / 81.3 |
| relu | ReLU everywhere; diverges at a larger rate than its 0.00015 | 45.9 / 70.5 |
| stage_relu | ReLU at the ends of the stages alone | 59.6 / 81.4 |
| stage_relu_prelu | ReLU there, PReLU elsewhere | 59.7 / 81.6 |
| baseline | ReLU there, FPReLU elsewhere: configs/baseline.py | 60.2 / 82.0 |
| full_precision | ResNet-18 in full precision: configs/resnet18_fp.py | 69.8 / 89.2 |

The plain recipe is the baseline's: 60 epochs, Adam from 0.01, divided by 10 at epochs 45 and 55.
"""

import dataclasses

from ftbnn_jax import config
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import spec


def _activations(elsewhere, stage_end):
    return dataclasses.replace(spec.baseline(), activation=elsewhere, stage_end_activation=stage_end)


def _row(model, **fields):
    return lambda: config.make(model, **{"schedule": "multistep", **fields})


ROWS = {
    "bireal_published": _row(spec.bireal18(), num_epochs=256),
    "bireal": _row(spec.bireal18()),
    "none": _row(_activations("none", "none")),
    "prelu": _row(_activations("prelu", "prelu")),
    "fprelu": _row(_activations("fprelu", "fprelu")),
    "relu": _row(_activations("relu", "relu"), learning_rate=0.00015),
    "stage_relu": _row(_activations("none", "relu")),
    "stage_relu_prelu": _row(_activations("prelu", "relu")),
    "baseline": _row(spec.baseline()),
    "full_precision": _row(spec.resnet18(), learning_rate=0.001),
}


def get_config(row="baseline"):
    if row not in ROWS:
        raise UserError(f"row={row!r}: Table 3 has the rows {', '.join(ROWS)}")
    return ROWS[row]()
