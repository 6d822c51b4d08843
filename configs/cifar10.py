"""A six-block 1-bit net on CIFAR-10 (through TFDS), for machines without an accelerator.

    python -m ftbnn_jax.main --config=configs/cifar10.py --workdir=DIR

Expected: about 73% of the test images after 5 epochs, in about 10 minutes on two cores.
"""

from ftbnn_jax import config
from ftbnn_jax.nn import spec


def get_config():
    return config.make(
        spec.small(blocks=(2, 2, 2), width=32, stem_stride=2),
        dataset="cifar10",
        image_size=32,
        num_classes=10,
        batch_size=100,
        num_epochs=5,
        checkpoint_every=500,
        log_every=50,
        augment="pad_crop",
        crop_padding=2,
        pixel_mean=(125.3, 123.0, 113.9),
        pixel_std=(63.0, 62.1, 66.7),
    )
