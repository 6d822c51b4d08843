"""The rows of Table 3: which non-linear modules a 1-bit ResNet-18 needs, on ImageNet or CIFAR-10.

    python -m ftbnn_jax.main --config=configs/ablation.py:ROW --workdir=DIR
    python -m ftbnn_jax.main --config=configs/ablation.py:ROW,cifar10 --workdir=DIR

| ROW | network | published top-1 / top-5 |
|---|---|---|
| bireal_published | Bi-Real Net as its authors trained it: configs/bireal18.py | 56.4 / 79.5 |
| bireal | Bi-Real Net's structure, with the plain recipe and the plain gradient | 52.3 / 75.9 |
| none | no explicit non-linear modules | 52.5 / 76.0 |
| prelu | PReLU everywhere | 58.9 / 81.1 |
| fprelu | FPReLU everywhere | 59.3 / 81.3 |
| relu | ReLU everywhere; diverges at a larger rate than its 0.00015 | 45.9 / 70.5 |
| stage_relu | ReLU at the ends of the stages alone | 59.6 / 81.4 |
| stage_relu_prelu | ReLU there, PReLU elsewhere | 59.7 / 81.6 |
| baseline | ReLU there, FPReLU elsewhere: configs/baseline.py | 60.2 / 82.0 |
| full_precision | ResNet-18 in full precision: configs/resnet18_fp.py | 69.8 / 89.2 |

The paper's row `bireal` is Bi-Real Net's structure with the paper's own scheme: the clipped gradient,
which ends at 1.2. Beside the row `none` it has factors by mean |w| left, which the batch norm behind
takes out again. Further rows ask what decides where published ones differ:

| ROW | network |
|---|---|
| bireal_ga | Bi-Real Net with the plain recipe, and its own gradient and bound |
| prelu_1 | PReLU everywhere, its slopes from 1, where FPReLU's begin |
| fprelu_025 | FPReLU everywhere, its negative slopes from 0.25, where PReLU's begin |

The plain recipe is the baseline's: 60 epochs, Adam from 0.01, divided by 10 at epochs 45 and 55.

On CIFAR-10 each row is a net of six blocks, 16 channels wide in the first stage, trained for five epochs
with the rates dropping at the same shares of the training: a few minutes on two cores. All rows, seeds
and the table: `python -m ftbnn_jax.experiments.table3 --workdir=DIR --dataset=cifar10`.
"""

from ftbnn_jax import config
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures, spec

_BI_REAL = {
    field: getattr(architectures.bireal18(), field)
    for field in ("activation", "stage_end_activation", "activation_gradient", "scaling", "ste_bound")
}


def _activations(elsewhere, stage_end):
    return {"activation": elsewhere, "stage_end_activation": stage_end}


# Fields of the network, and of the recipe.
ROWS = {
    "bireal_published": (_BI_REAL, {"num_epochs": 256}),
    "bireal": ({**_activations("none", "none"), "scaling": "mean_abs"}, {}),
    "bireal_ga": (_BI_REAL, {}),
    "none": (_activations("none", "none"), {}),
    "prelu": (_activations("prelu", "prelu"), {}),
    "fprelu": (_activations("fprelu", "fprelu"), {}),
    "relu": (_activations("relu", "relu"), {"learning_rate": 0.00015}),
    "stage_relu": (_activations("none", "relu"), {}),
    "stage_relu_prelu": (_activations("prelu", "relu"), {}),
    "baseline": (_activations("fprelu", "relu"), {}),
    "prelu_1": ({**_activations("prelu", "prelu"), "slope_start": (1.0, 1.0, 1.0)}, {}),
    "fprelu_025": ({**_activations("fprelu", "fprelu"), "slope_start": (0.25, 0.25, 1.0)}, {}),
    "full_precision": (
        {
            "block": "real",
            **_activations("relu", "relu"),
            "stem_activation": "relu",
            "real_init": "he_normal",
        },
        {"learning_rate": 0.001},
    ),
}


def get_config(row="baseline"):
    row, _, dataset = row.partition(",")
    if row not in ROWS:
        raise UserError(f"row={row!r}: Table 3 has the rows {', '.join(ROWS)}")
    if dataset not in ("", "imagenet2012", "cifar10"):
        raise UserError(f"dataset={dataset!r}: there are imagenet2012 and cifar10")
    model, recipe = ROWS[row]
    recipe = {"schedule": "multistep", **recipe}
    # A real block holds two convolutions, a binary one holds one.
    per_stage = 1 if model.get("block") == "real" else 2
    if dataset != "cifar10":
        return config.make(spec.ResNetSpec(blocks=(2 * per_stage,) * 4, **model), **recipe)
    epochs = config.CIFAR10["num_epochs"]
    if "num_epochs" in recipe:
        recipe["num_epochs"] = round(recipe["num_epochs"] * epochs / 60)
    small = architectures.small(blocks=(per_stage,) * 3, width=16, stem_stride=2, **model)
    return config.make(small, **{**config.CIFAR10, **recipe})
