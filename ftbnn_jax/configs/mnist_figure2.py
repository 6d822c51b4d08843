"""Figure 2: what a non-linear module adds to a binary net, on MNIST (through TFDS).

    python -m ftbnn_jax.main --config=configs/mnist_figure2.py:MODEL --workdir=DIR

| MODEL | blocks | published accuracy, discrepancy |
|---|---|---|
| linear | real convolutions, no non-linear module | far below the others |
| binary | binary convolutions, no non-linear module | 98.45 +- 0.16, 1.04 +- 0.03 |
| prelu | binary convolutions, PReLU | 98.70 +- 0.07, 1.66 +- 0.04 |
| relu | binary convolutions, ReLU | 98.83 +- 0.07, 2.41 +- 0.13 |
| fprelu | binary convolutions, FPReLU | not in the paper |

A real convolution, two basic blocks of one convolution each and a classifier that reads positions. The
paper gives neither widths nor recipe; these are 24 channels and five epochs of Adam, about two
minutes on two cores. All models and seeds, the table and the figure:
`python -m ftbnn_jax.experiments.figure2 --workdir=DIR`.
"""

from ftbnn_jax import config
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures

MODELS = {
    "linear": {
        "binary_activations": False,
        "real_activations": "identity",
        "binary_weights": False,
        "activation": "none",
    },
    "binary": {"activation": "none"},
    "prelu": {"activation": "prelu"},
    "relu": {"activation": "relu"},
    "fprelu": {"activation": "fprelu"},
}


def get_config(model="relu"):
    if model not in MODELS:
        raise UserError(f"model={model!r}: Figure 2 has the models {', '.join(MODELS)}")
    fields = MODELS[model]
    return config.make(
        architectures.small(
            blocks=(2,),
            width=24,
            stem_stride=2,
            head="flatten",
            stage_end_activation=fields["activation"],
            **fields,
        ),
        dataset="mnist",
        image_size=28,
        num_classes=10,
        batch_size=100,
        num_epochs=5,
        log_every=100,
        checkpoint_every=0,
        augment="none",
        flip=False,
        pixel_mean=(33.3,),
        pixel_std=(78.6,),
    )
