"""A small 1-bit net on scikit-learn's handwritten digits: no download, a minute or two on two cores.

    python -m ftbnn_jax.main --config=configs/quickstart.py --workdir=DIR

1,797 images of 8x8 pixels; a fixed quarter of each class is held out. Every block convolution is
binary. Expected: at least 98.5% of the held-out images.
"""

from ftbnn_jax import config
from ftbnn_jax.nn import architectures


def get_config():
    return config.make(
        architectures.small(blocks=(2, 2), width=48),
        dataset="digits",
        image_size=8,
        num_classes=10,
        batch_size=64,
        num_epochs=60,
        eval_every=421,
        checkpoint_every=421,
        log_every=50,
        weight_decay=1e-4,
        label_smoothing=0.1,
        augment="pad_crop",
        crop_padding=1,
        flip=False,
        pixel_mean=(73.0,),
        pixel_std=(90.0,),
    )
