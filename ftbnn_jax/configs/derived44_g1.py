"""Derived net of 44 layers, one group, on ImageNet (Table 4).

    python -m ftbnn_jax.main --config=configs/derived44_g1.py --workdir=DIR

Budget ~135M: published top-1 63.3%. The paper has no ~90M net of this depth.
The recipe is the default one: Adam from 0.01, cosine to 0, 60 epochs.
"""

from ftbnn_jax import config
from ftbnn_jax.nn import architectures


def get_config(budget="135"):
    return config.make(architectures.derived(layers=44, groups=1, budget=int(budget)))
