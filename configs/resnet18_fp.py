"""ResNet-18 in full precision on ImageNet: published top-1 69.8%, top-5 89.2% (Table 3).

    python -m ftbnn_jax.main --config=configs/resnet18_fp.py --workdir=DIR

The reference of the binary nets, and the teacher of the distilled ones. The paper does not say how it
was trained; here the baseline's recipe, but from 0.001, since 0.01 is too much for real weights.
"""

from ftbnn_jax import config
from ftbnn_jax.nn import spec


def get_config():
    return config.make(spec.resnet18(), schedule="multistep", learning_rate=0.001)
