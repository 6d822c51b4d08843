"""Derived net of 18 layers, one group, on ImageNet (Table 4).

    python -m ftbnn_jax.main --config=configs/derived18_g1.py --workdir=DIR

Budget ~135M: published top-1 64.8%. With `:90` after the file's name the ~90M net: 61.9%.
The recipe is the default one: Adam from 0.01, cosine to 0, 60 epochs.
"""

from ftbnn_jax import config
from ftbnn_jax.nn import architectures


def get_config(budget="135"):
    return config.make(architectures.derived(layers=18, groups=1, budget=int(budget)))
