"""A six-block 1-bit net on CIFAR-10 (through TFDS), for machines without an accelerator.

    python -m ftbnn_jax.main --config=configs/cifar10.py --workdir=DIR

Expected: about 73% of the test images after 5 epochs, in about 10 minutes on two cores.
"""

from ftbnn_jax import config
from ftbnn_jax.nn import architectures


def get_config():
    return config.make(architectures.small(blocks=(2, 2, 2), width=32, stem_stride=2), **config.CIFAR10)
