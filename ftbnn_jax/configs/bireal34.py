"""Bi-Real Net-34 (Liu et al., 2018) on ImageNet: published top-1 62.2% at a budget of 193M (Table 4).

    python -m ftbnn_jax.main --config=configs/bireal34.py --workdir=DIR

The paper does not say how it was trained; the recipe is that of configs/bireal18.py.
"""

from ftbnn_jax import config
from ftbnn_jax.nn import architectures


def get_config():
    return config.make(architectures.bireal34(), schedule="multistep", num_epochs=256)
