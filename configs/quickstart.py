"""A small 1-bit net on scikit-learn's handwritten digits: no download, a minute or two on two cores.

    python -m ftbnn_jax.main --config=configs/quickstart.py --workdir=DIR

1,797 images of 8x8 pixels; a fixed quarter of each class is held out. Every block convolution is
binary. Expected: at least 98.5% of the held-out images.
"""

from ftbnn_jax import config
from ftbnn_jax.nn import spec


def get_config():
    return config.make(
        spec.small(blocks=(2, 2), width=32),
        dataset="digits",
        image_size=8,
        num_classes=10,
        batch_size=64,
        num_epochs=60,
        eval_every=210,
        checkpoint_every=210,
        log_every=21,
        augment="pad_crop",
        crop_padding=1,
        flip=False,
        pixel_mean=(77.0,),
        pixel_std=(95.0,),
    )
