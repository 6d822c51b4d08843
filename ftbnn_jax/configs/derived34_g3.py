"""Derived net of 34 layers, 3 groups, on ImageNet (Table 4).

    python -m ftbnn_jax.main --config=configs/derived34_g3.py --workdir=DIR

Budget ~135M: published top-1 65.3%. With `:90` after the file's name the ~90M net: 62.0%.
The recipe is the default one: Adam from 0.01, cosine to 0, 60 epochs.
"""

from ftbnn_jax import config
from ftbnn_jax.nn import architectures


def get_config(budget="135"):
    return config.make(architectures.derived(layers=34, groups=3, budget=int(budget)))
