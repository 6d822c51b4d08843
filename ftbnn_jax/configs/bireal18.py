"""Bi-Real Net-18 (Liu et al., 2018) on ImageNet: published top-1 56.4%, top-5 79.5% (Table 3).

    python -m ftbnn_jax.main --config=configs/bireal18.py --workdir=DIR

256 epochs in one step, as Table 1 has it; the paper does not say the rest of its recipe, so this one
is the baseline's. Its structure with the plain gradient and 60 epochs is configs/ablation.py:bireal,
published as 52.3%.
"""

from ftbnn_jax import config
from ftbnn_jax.nn import architectures


def get_config():
    return config.make(architectures.bireal18(), schedule="multistep", num_epochs=256)
