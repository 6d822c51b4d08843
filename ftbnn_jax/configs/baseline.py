"""FTBNN baseline, the 1-bit ResNet-18 of Table 3, on ImageNet: published top-1 60.2%, top-5 82.0%.

    python -m ftbnn_jax.main --config=configs/baseline.py --workdir=DIR

Adam from 0.01, divided by 10 at epochs 45 and 55 of 60. The paper gives neither a batch size nor the
weight decay of what is not binary: 256 and 1e-5 are choices, of which docs/paper.md has a list.
"""

from ftbnn_jax import config
from ftbnn_jax.nn import architectures


def get_config():
    return config.make(architectures.baseline(), schedule="multistep")
