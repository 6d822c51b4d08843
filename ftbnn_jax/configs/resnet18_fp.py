"""ResNet-18 in full precision on ImageNet: published top-1 69.8%, top-5 89.2% (Table 3).

    python -m ftbnn_jax.main --config=configs/resnet18_fp.py --workdir=DIR

The reference of the binary nets, and the teacher of the distilled ones (configs/baseline_kd.py). The
paper does not say how it was trained; here the baseline's recipe, but from 0.001, since 0.01 is too much
for real weights. With `:cifar10` after the file's name a small net of three stages on CIFAR-10, as wide
as that of configs/cifar10.py.
"""

import dataclasses

from ftbnn_jax import config
from ftbnn_jax.errors import UserError
from ftbnn_jax.nn import architectures


def get_config(dataset="imagenet2012"):
    if dataset not in ("imagenet2012", "cifar10"):
        raise UserError(f"dataset={dataset!r}: there are imagenet2012 and cifar10")
    net = architectures.resnet18()
    if dataset == "imagenet2012":
        return config.make(net, schedule="multistep", learning_rate=0.001)
    small = architectures.small((1, 1, 1), 32, stem_stride=2)
    shape = {
        f: getattr(small, f) for f in ("blocks", "width", "stem_features", "stem_kernel", "stem_pool")
    }
    net = dataclasses.replace(net, **shape)
    return config.make(net, **{**config.CIFAR10, "learning_rate": 0.002, "num_epochs": 10})
