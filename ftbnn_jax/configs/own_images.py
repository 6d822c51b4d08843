"""A small 1-bit net for a folder of your own images: half a minute on two cores for 200 of them.

    python -m ftbnn_jax.main --config=configs/own_images.py --config.dataset=folder:PATH --workdir=DIR

PATH holds a folder for each class, with its images in it; a tenth of them is held out, or those in
PATH/test where the others are in PATH/train. Number of classes, colours and the statistics of the
pixels are found in the images. For a budget, which reads none, own_images.py:4 says that there are 4
classes.

All images are kept in memory, and whole. Photographs by the thousand are better read as they are needed,
in random crops, and evaluated once an epoch: --config.augment=resize_crop --config.eval_every=0.
"""

from ftbnn_jax import config
from ftbnn_jax.nn import architectures


def get_config(num_classes="0"):
    return config.make(
        architectures.small(blocks=(1, 1), width=32, stem_stride=2),
        dataset="folder:images",
        image_size=64,
        num_classes=int(num_classes),
        batch_size=32,
        num_epochs=60,
        eval_every=100,
        log_every=50,
        learning_rate=0.003,
        weight_decay=1e-4,
        augment="pad_crop",
        pixel_mean=(),
        pixel_std=(),
    )
