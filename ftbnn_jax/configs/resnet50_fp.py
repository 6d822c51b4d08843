"""ResNet-50 in full precision on ImageNet, a control for the speed of training.

    python -m ftbnn_jax.bench.train_step --config=configs/resnet50_fp.py

The paper has no such net. The recipe is that of configs/resnet18_fp.py.
"""

from ftbnn_jax import config
from ftbnn_jax.nn import architectures


def get_config():
    return config.make(architectures.resnet50(), schedule="multistep", learning_rate=0.001)
